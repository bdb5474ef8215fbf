#!/usr/bin/env bash
# Short proofs of the native core: stress, loom, AddressSanitizer and Miri with small bounds. A step whose tools are
# missing is left out and reported; the exit status is that of the steps that ran. `make stress` runs the long forms.
set -uo pipefail
cd "$(dirname "$0")/.."

readonly host=$(rustc -vV | sed -n 's/^host: //p')
export AIF_STRESS_SECONDS=${AIF_STRESS_SECONDS:-0.8} LOOM_MAX_PREEMPTIONS=${LOOM_MAX_PREEMPTIONS:-3}
report=()
failed=0

# prove NAME COMMAND...: builds the tests that COMMAND runs, then runs them.
prove() {
	local name=$1 began=$SECONDS built
	shift
	echo "== $name"
	local build=() arg
	for arg in "$@"; do
		[ "$arg" = -- ] && break
		build+=("$arg")
	done
	if "${build[@]}" --no-run && built=$SECONDS && "$@"; then
		report+=("passed: $name, in $((SECONDS - built)) s after $((built - began)) s of building")
	else
		report+=("FAILED: $name")
		failed=1
	fi
}

leave_out() {
	report+=("left out: $1, since $2")
}

prove "stress ($AIF_STRESS_SECONDS s a test)" \
	cargo test --quiet --test cache_stress --test sched_stress -- --test-threads=1 # as `cargo test` built it

prove "loom ($LOOM_MAX_PREEMPTIONS preemptions)" \
	env RUSTFLAGS="--cfg aif_loom" CARGO_TARGET_DIR=target/proof CARGO_PROFILE_DEV_OPT_LEVEL=1 \
	CARGO_PROFILE_DEV_DEBUG=false CARGO_INCREMENTAL=0 cargo test --quiet -p aif-core --lib -- models:: sched::loom xla::parallel

# Sanitizers are unstable options; RUSTC_BOOTSTRAP allows them on a stable toolchain that ships their runtime.
if ls "$(rustc --print sysroot)/lib/rustlib/$host/lib/"librustc*rt.asan.a >/dev/null 2>&1; then
	sanitized=(env RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address" ASAN_OPTIONS=allocator_may_return_null=1
		CARGO_TARGET_DIR=target/proof CARGO_PROFILE_DEV_OPT_LEVEL=0 CARGO_PROFILE_DEV_DEBUG=false CARGO_INCREMENTAL=0
		AIF_STRESS_SECONDS=0.3 cargo test --quiet -p aif-core --target "$host")
	prove "AddressSanitizer" "${sanitized[@]}" --test cache_stress --test sched_stress -- --test-threads=1
	prove "AddressSanitizer (work sharing, input from outside)" "${sanitized[@]}" --lib --test untrusted -- \
		xla::parallel refused edges
else
	leave_out "AddressSanitizer" "this toolchain has no runtime of it for $host"
fi

nightly=$(rustup toolchain list 2>/dev/null | sed -n 's/^\(nightly[^ ]*\).*/\1/p' | head -n 1)
if [ -z "$nightly" ]; then
	leave_out "Miri" "there is no nightly toolchain (rustup toolchain install nightly)"
elif ! cargo "+$nightly" miri --version >/dev/null 2>&1; then
	leave_out "Miri" "it is not installed (rustup component add miri rust-src --toolchain $nightly)"
elif ! [ -d "$(rustc "+$nightly" --print sysroot)/lib/rustlib/src/rust/library" ]; then
	leave_out "Miri" "the source of the standard library is missing (rustup component add rust-src --toolchain $nightly)"
elif ! cargo "+$nightly" miri setup --quiet; then
	leave_out "Miri" "it cannot build its standard library (see above)"
else
	# Miri supports neither files nor reserved address space as memory, rejects the pointers of crossbeam-epoch, and
	# is too slow for the larger tests.
	prove "Miri (the pure parts of the core)" \
		env MIRIFLAGS="-Zmiri-disable-isolation" PROPTEST_CASES=1 CARGO_TARGET_DIR=target/proof \
		cargo "+$nightly" miri test --quiet -p aif-core --lib -- \
		cache::hash cache::table cache::layout metrics pool bf16 \
		sched::circuit --skip a_full_load --skip the_pool_keeps_no_more
fi

printf '\n'
printf '%s\n' "${report[@]}"
exit $failed
