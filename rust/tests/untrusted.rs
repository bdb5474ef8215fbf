//! Fuzzing of what the core takes from outside: layouts, files of rows, strings. Manifests, snapshots' headers,
//! logs, updates and schemas are decoded in Python, and fuzzed there.
//!
//! `PROPTEST_CASES` sets the cases of each test: `PROPTEST_CASES=1000000 cargo test --release -p aif-core
//! --test untrusted`. Inputs that failed once are written out as tests of their own.

use aif_core::cache::{
    BLOCK_BYTES, CacheConfig, Column, DType, EmbeddingCache, ROW_ALIGN, RowLayout, block_checksums,
    key_of,
};
use proptest::prelude::*;
use std::fs::File;
use std::io::Write;

const NAMES: [&str; 11] = [
    "bool", "int8", "uint8", "int16", "uint16", "int32", "int64", "float16", "bfloat16", "float32",
    "float64",
];

fn dtype() -> impl Strategy<Value = DType> {
    let known = NAMES.iter().filter_map(|name| DType::from_name(name).ok());
    prop::sample::select(known.collect::<Vec<_>>())
}

/// Small dimensions mostly, so that layouts are accepted, and those at which sizes overflow.
fn dimension() -> impl Strategy<Value = usize> {
    prop_oneof![
        6 => 1..20usize,
        1 => Just(0),
        1 => any::<usize>(),
        1 => (0..64u32).prop_map(|bit| 1usize << bit),
        1 => (0..64u32).prop_map(|bit| (1usize << bit).wrapping_sub(1)),
    ]
}

type GivenColumn = (String, DType, Vec<usize>);

fn columns() -> impl Strategy<Value = Vec<GivenColumn>> {
    let column = (".{0,3}", dtype(), prop::collection::vec(dimension(), 0..4));
    prop::collection::vec(column, 0..6)
}

/// Makes a file without a name that holds `bytes`.
fn file_of(bytes: &[u8]) -> File {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("aif-fuzz-{}-{number}", std::process::id()));
    let mut options = File::options();
    options.read(true).write(true).create_new(true);
    let mut file = options.open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// A layout is refused, or its columns lie apart, aligned and inside the row.
fn check_layout(columns: &[GivenColumn]) -> Result<(), TestCaseError> {
    let Ok(layout) = RowLayout::new(columns.iter().cloned()) else {
        return Ok(());
    };
    let mut end = 0;
    for (column, (name, dtype, shape)) in layout.columns().iter().zip(columns) {
        prop_assert_eq!((column.name(), column.shape()), (&**name, &**shape));
        let product = shape.iter().map(|&dim| dim as u128).product::<u128>();
        prop_assert_eq!(column.bytes() as u128, product * dtype.size() as u128);
        prop_assert!(column.offset() >= end && column.offset().is_multiple_of(dtype.size()));
        end = column.offset() + column.bytes();
    }
    prop_assert!(end <= layout.row_bytes() && layout.row_bytes().is_multiple_of(ROW_ALIGN));
    prop_assert_eq!(layout.columns().len(), columns.len());
    let payload: usize = layout.columns().iter().map(Column::bytes).sum();
    prop_assert_eq!(payload, layout.payload_bytes());
    Ok(())
}

/// A file is refused, or each key's row is the bytes that lie in its place.
fn check_file(bytes: &[u8], width: usize, offset: u64, keys: &[u64]) -> Result<(), TestCaseError> {
    let layout = RowLayout::new([("x", DType::UInt8, vec![width])]).unwrap();
    let row_bytes = layout.row_bytes();
    let config = CacheConfig {
        huge_pages: false,
        ..CacheConfig::default()
    };
    // SAFETY: the file has no name, and nobody writes to it.
    let made = unsafe { EmbeddingCache::over_file(layout, config, &file_of(bytes), offset, keys) };
    let mut different = keys.to_vec();
    different.sort_unstable();
    different.dedup();
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let fits = start
        .checked_add(keys.len() * row_bytes)
        .is_some_and(|end| end <= bytes.len());
    let aligned = offset.is_multiple_of(64 << 10);
    let expected = different.len() == keys.len() && (keys.is_empty() || fits && aligned);
    prop_assert_eq!(made.is_ok(), expected, "{:?}", made.err());
    let Ok(cache) = made else { return Ok(()) };
    let mut right = 0;
    cache.read_rows(keys, |i, row| {
        let at = start + i * row_bytes;
        right += usize::from(row == Some(&bytes[at..at + row_bytes]));
    });
    prop_assert_eq!((right, cache.len()), (keys.len(), keys.len()));
    // Writes stay out of the file, and go beyond it.
    let (more, row) = ([1, 2, 3, u64::MAX], vec![7; width * 4]);
    cache.upsert(&more, &[&row]).unwrap();
    let mut found = 0;
    cache.read_rows(&more, |_, row| {
        found += usize::from(row.is_some_and(|row| row[..width].iter().all(|&byte| byte == 7)));
    });
    prop_assert_eq!(found, more.len());
    Ok(())
}

fn keys() -> impl Strategy<Value = Vec<u64>> {
    let key = prop_oneof![8 => any::<u64>(), 1 => 0..5u64, 1 => Just(u64::MAX)];
    prop::collection::vec(key, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn layouts_are_refused_or_right(columns in columns()) {
        check_layout(&columns)?;
    }

    #[test]
    fn files_of_rows_are_refused_or_read_as_they_are(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        // Before, at and after the first place where rows may begin, whole and cut short.
        length in 0..200_000usize,
        width in 1..300usize,
        offset in prop_oneof![
            6 => Just(0u64),
            6 => Just(64u64 << 10),
            1 => any::<u64>(),
            1 => (0..64u32).prop_map(|bit| 1u64 << bit),
            1 => Just(u64::MAX - 0xffff),
        ],
        keys in keys(),
    ) {
        let file: Vec<u8> = bytes.iter().copied().cycle().take(length).collect();
        check_file(&file, width, offset, &keys)?;
    }

    #[test]
    fn names_of_dtypes_are_refused_or_known(name in ".{0,12}") {
        if let Ok(dtype) = DType::from_name(&name) {
            prop_assert_eq!(dtype.name(), &*name);
        }
    }

    #[test]
    fn a_key_depends_on_the_bytes_alone(bytes in prop::collection::vec(any::<u8>(), 0..600), at in 0..64usize) {
        let key = key_of(&bytes);
        let mut moved = vec![0xaa; at];
        moved.extend_from_slice(&bytes);
        prop_assert_eq!(key_of(&moved[at..]), key);
        if let Some(last) = bytes.len().checked_sub(1) {
            moved[at + last] ^= 1;
            prop_assert_ne!(key_of(&moved[at..]), key);
            prop_assert_ne!(key_of(&bytes[..last]), key);
        }
        prop_assert_eq!(block_checksums(&bytes), bytes.chunks(BLOCK_BYTES).map(key_of).collect::<Vec<_>>());
    }
}

/// Seeds: the edges of each bound, by hand.
#[test]
fn edges_of_layouts_and_files() {
    let column = |shape: &[usize]| vec![("x".to_owned(), DType::Float32, shape.to_vec())];
    for shape in [
        &[][..],
        &[1],
        &[usize::MAX],
        &[1 << 62],
        &[1 << 32, 1 << 32],
        &[(1 << 62) + 1],
        &[usize::MAX, 0],
    ] {
        check_layout(&column(shape)).unwrap();
    }
    check_layout(&[]).unwrap();
    let page = 64usize << 10;
    let file: Vec<u8> = (0..page + 640).map(|i| (i % 251) as u8).collect();
    for (offset, keys) in [
        (page as u64, &[5, 6, 7, 8, 9, 0, 1, 2, 3, 4][..]), // to the end
        (page as u64, &[5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 10]), // one row too many
        (page as u64, &[1, 1]),
        (0, &[]),
        (u64::MAX, &[]),
        (u64::MAX, &[1]),
        (u64::MAX - 0xffff, &[1]),
        (1, &[1]),
        (0, &[0, u64::MAX]),
    ] {
        check_file(&file, 64, offset, keys).unwrap();
    }
    for short in [0, 1, 63, page, page + 1, page + 639] {
        check_file(&file[..short], 64, page as u64, &[1, 2, 3]).unwrap();
    }
}
