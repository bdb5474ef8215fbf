//! Error type of the crate. A message says what was given, what was expected, and how to fix it.

use std::fmt;

/// Result type of the crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Error of an operation.
///
/// Variants are distinguished by what the caller can do about them; the message carries the values.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// A configuration value is out of its range.
    Config(String),
    /// Columns do not match a row layout, or a row layout contradicts itself.
    Layout(String),
    /// An argument is malformed: wrong length, shape or value.
    Request(String),
    /// The system refused memory. Nothing was changed beyond what `what` says.
    OutOfMemory {
        /// Purpose of the memory, and how far the operation had come.
        what: String,
        /// Number of bytes requested.
        bytes: usize,
    },
    /// A bounded cache has no row left, because readers still hold all retired ones.
    RowsHeld {
        /// Rows retired but still visible to readers.
        retired: usize,
        /// Maximum number of rows, including the slack.
        limit: usize,
    },
    /// The system refused an operation on a file.
    File {
        /// The operation, as a verb and its object.
        operation: &'static str,
        /// Message of the system.
        reason: String,
        /// `errno` of the system.
        code: Option<i32>,
    },
    /// A cache handle that belongs to no living cache.
    StaleHandle(u64),
    /// A panic interrupted a writer, so that the state it guarded may be inconsistent.
    Poisoned(&'static str),
    /// The queue of a scheduler's lane is full.
    QueueFull {
        /// Name of the lane.
        lane: &'static str,
        /// Tasks in its queue.
        queued: usize,
        /// Maximum number of queued tasks.
        limit: usize,
    },
    /// A task was refused because it would end too late or because calls of its name hang.
    Overloaded(String),
    /// A deadline passed before the work was started or finished.
    DeadlineExceeded(String),
    /// The scheduler was shut down, forked, or would have had to wait for itself.
    Scheduler(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(message)
            | Self::Layout(message)
            | Self::Request(message)
            | Self::Overloaded(message)
            | Self::DeadlineExceeded(message)
            | Self::Scheduler(message) => f.write_str(message),
            Self::OutOfMemory { what, bytes } => write!(
                f,
                "the system refused {bytes} bytes for {what}; free memory, lower the number of rows, \
                 or bound the cache with capacity_bytes"
            ),
            Self::QueueFull {
                lane,
                queued,
                limit,
            } => write!(
                f,
                "the {lane} lane already holds {queued} queued tasks, and its limit is {limit}; send less, raise \
                 the limit, or give the lane more threads"
            ),
            Self::RowsHeld { retired, limit } => write!(
                f,
                "no row is free: {retired} replaced rows still wait for readers, and the bound allows {limit} rows; \
                 a reader has been inside the cache for very long, or capacity_bytes is too small for the write rate: \
                 raise it, or write smaller batches"
            ),
            Self::File {
                operation, reason, ..
            } => write!(f, "the system refused to {operation}: {reason}"),
            Self::StaleHandle(handle) => write!(
                f,
                "cache handle {handle} belongs to no living cache; keep the EmbeddingCache alive for as long as \
                 compiled programs use its handle"
            ),
            Self::Poisoned(what) => write!(
                f,
                "{what} was left half-changed when a writer panicked: its rows can still be read and listed, but \
                 nothing can be written; make a new one and fill it from those rows or from their source"
            ),
        }
    }
}

impl std::error::Error for Error {}

impl Error {
    /// Makes the error of an operation on a file that the system refused.
    pub(crate) fn file(operation: &'static str, error: &std::io::Error) -> Self {
        Self::File {
            operation,
            reason: error.to_string(),
            code: error.raw_os_error(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_carry_the_values() {
        let held = Error::RowsHeld {
            retired: 7,
            limit: 9,
        };
        let memory = Error::OutOfMemory {
            what: "a segment".into(),
            bytes: 4096,
        };
        let full = Error::QueueFull {
            lane: "compute",
            queued: 5,
            limit: 4,
        };
        for (error, expected) in [
            (held, ["7 replaced rows", "9 rows"]),
            (memory, ["4096 bytes", "for a segment"]),
            (full, ["compute lane already holds 5 queued", "limit is 4"]),
            (Error::StaleHandle(12), ["handle 12", "no living cache"]),
        ] {
            let text = error.to_string();
            assert!(expected.iter().all(|part| text.contains(part)), "{text}");
        }
    }
}
