//! Bytes that a million rows take, measured by the process: its resident memory before and after.
//!
//! `cargo run --release -p aif-bench --bin memory`. Each store is filled in a process of its own, row by row,
//! so that no store inherits another's pages.

use aif_bench::keys::key_of;
use aif_bench::{check, fill, peers};
use std::process::Command;

const ROWS: usize = 1_000_000;
const SIZES: [usize; 2] = [256, 1024];

fn main() {
    let mut arguments = std::env::args().skip(1);
    if let Some(name) = arguments.next() {
        let row_bytes = arguments
            .next()
            .and_then(|text| text.parse().ok())
            .expect("NAME ROW_BYTES");
        measure(&name, row_bytes);
        return;
    }
    println!("| {ROWS} rows | bytes a row | bytes a key over the row |\n|---|---|---|");
    for row_bytes in SIZES {
        for name in peers::ALL {
            let program = std::env::current_exe().expect("a path of this program");
            let child = Command::new(program)
                .args([name, &row_bytes.to_string()])
                .status();
            assert!(child.expect("a process").success(), "{name} failed");
        }
    }
}

/// Fills one store and prints its line.
fn measure(name: &str, row_bytes: usize) {
    let before = resident_bytes();
    let store = peers::make(name, ROWS, row_bytes);
    fill(&*store, ROWS, row_bytes);
    let taken = resident_bytes() - before;
    let keys: Vec<u64> = (0..ROWS).step_by(997).map(key_of).collect();
    check(&*store, &keys, row_bytes);
    let each = taken as f64 / ROWS as f64;
    println!(
        "| {name}, {row_bytes} bytes | {each:.1} | {:.1} |",
        each - row_bytes as f64
    );
}

/// Memory of this process that the system has backed, as Linux tells.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .expect("a line of resident memory");
    let kb: usize = line
        .split_whitespace()
        .nth(1)
        .and_then(|kb| kb.parse().ok())
        .expect("a number");
    kb * 1024
}
