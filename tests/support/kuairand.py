"""Columns and rows of a log in the layout of KuaiRand."""

LOG_COLUMNS = (
    "user_id", "video_id", "date", "hourmin", "time_ms", "is_click", "is_like", "is_follow", "is_comment",
    "is_forward", "is_hate", "long_view", "play_time_ms", "duration_ms", "profile_stay_time",
    "comment_stay_time", "is_profile_enter", "is_rand", "tab",
)  # fmt: skip
USER_COLUMNS = (
    "user_id", "user_active_degree", "is_lowactive_period", "is_live_streamer", "is_video_author",
    "follow_user_num", "follow_user_num_range", "fans_user_num", "fans_user_num_range", "friend_user_num",
    "friend_user_num_range", "register_days", "register_days_range", *(f"onehot_feat{i}" for i in range(18)),
)  # fmt: skip
VIDEO_COLUMNS = (
    "video_id", "author_id", "video_type", "upload_dt", "upload_type", "visible_status", "video_duration",
    "server_width", "server_height", "music_id", "music_type", "tag",
)  # fmt: skip


def log_row(row):
    user, video, date, hourmin, time, tab, click, long_view, like = row
    known = {
        "user_id": user, "video_id": video, "date": date, "hourmin": hourmin, "time_ms": time, "tab": tab,
        "is_click": click, "long_view": long_view, "is_like": like,
    }  # fmt: skip
    return {name: known.get(name, 0) for name in LOG_COLUMNS}


def user_row(user):
    codes = {f"onehot_feat{i}": (None if user == 9 and i >= 12 else float(i % 3)) for i in range(18)}
    values = {"user_active_degree": "full_active", "follow_user_num": user * 10, "register_days": 100}
    return {name: {"user_id": user, **values, **codes}.get(name, 0) for name in USER_COLUMNS}
