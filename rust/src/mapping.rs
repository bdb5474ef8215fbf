//! Copy-on-write mapping of a file into memory.

use crate::error::{Error, Result};
use std::fs::File;
use std::ptr::NonNull;

/// Part of a file in memory, followed by zeros. Pages that are not written to belong to the system's page
/// cache, shared with every process that maps the file; a page that is written to becomes a private copy.
///
/// The file must not change while it is mapped: after truncation, a read beyond its end kills the process.
/// Deleting it, or renaming another file over it, is harmless.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
    // Invariant: `start` came from `system::get` with these `bytes`, which are not 0.
}

// SAFETY: the mapping owns its memory, and hands out raw pointers only.
unsafe impl Send for Mapping {}
// SAFETY: as above; the user of the pointer is responsible for the accesses.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `filled` bytes of `file` from `offset` on, in `bytes` bytes of address space. The remainder is
    /// zero from the first whole page on; the rest of the last page of the file's part shows the file's
    /// next bytes. With `prefault` all pages are mapped at once.
    ///
    /// # Safety
    /// While the mapping lives, nobody writes to the mapped part of the file or truncates the file: such a
    /// write changes memory behind references to it, and a read beyond the end kills the process.
    ///
    /// # Errors
    /// [`Error::Request`] if `offset` is not a multiple of [`PAGE`], or the file is too short;
    /// [`Error::OutOfMemory`] and [`Error::File`] from the system.
    pub unsafe fn new(
        file: &File,
        offset: u64,
        filled: usize,
        bytes: usize,
        prefault: bool,
    ) -> Result<Self> {
        let length = file
            .metadata()
            .map_err(|error| Error::file("measure a file", &error))?
            .len();
        let end = offset.checked_add(filled as u64);
        if filled > 0 && (!offset.is_multiple_of(PAGE as u64) || end.is_none_or(|end| end > length))
        {
            return Err(Error::Request(format!(
                "bytes {offset} to {offset} + {filled} of a file of {length} bytes cannot be mapped; expected \
                 a part that the file has, from a multiple of {PAGE} on"
            )));
        }
        let bytes = bytes.max(filled).max(1);
        let part = Part {
            file,
            offset,
            filled,
            bytes,
            prefault,
        };
        let start = system::get(&part)?;
        Ok(Self { start, bytes })
    }

    /// Returns the start of the memory, valid for [`len`](Self::len) bytes while the mapping lives.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Returns the size in bytes, including the zeros after the file's part.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Returns false: a mapping has at least one byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// Part of a file to map; see [`Mapping::new`].
struct Part<'a> {
    file: &'a File,
    offset: u64,
    filled: usize,
    bytes: usize,
    /// Ignored where files are not mapped.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    prefault: bool,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: by the invariant; freed only here.
        unsafe { system::give_back(self.start, self.bytes) };
    }
}

/// Granularity of offsets: the largest small page of the supported systems.
pub const PAGE: usize = 64 << 10;

#[cfg(target_os = "linux")]
mod system {
    use super::{Error, NonNull, PAGE, Part, Result};
    use std::io;
    use std::os::fd::AsRawFd;
    use std::ptr;

    pub(super) fn get(part: &Part<'_>) -> Result<NonNull<u8>> {
        let &Part {
            file,
            offset,
            filled,
            bytes,
            prefault,
        } = part;
        let refused = || Error::OutOfMemory {
            what: "the address space of a mapped file".into(),
            bytes,
        };
        let whole = bytes.checked_next_multiple_of(PAGE).ok_or_else(refused)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new private mapping without a file at an address that the system chooses.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                whole,
                protection,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(refused());
        }
        let taken = Taken { start, whole };
        // Without rows the offset is of no account, also one that no file has.
        if filled > 0 {
            let offset = libc::off_t::try_from(offset).map_err(|_| refused())?;
            // SAFETY: replaces the first pages of the mapping just made, which is not yet used, by a
            // private mapping of the file: writes to it stay in this process.
            let file = unsafe {
                libc::mmap(
                    start,
                    filled,
                    protection,
                    libc::MAP_PRIVATE | libc::MAP_NORESERVE | libc::MAP_FIXED,
                    file.as_raw_fd(),
                    offset,
                )
            };
            if file == libc::MAP_FAILED {
                return Err(Error::file(
                    "map a file as memory",
                    &io::Error::last_os_error(),
                ));
            }
            if prefault {
                // SAFETY: advice on a range that this thread owns. Older kernels do not know it and ignore
                // it.
                unsafe { libc::madvise(start, filled, libc::MADV_POPULATE_READ) };
            }
        }
        std::mem::forget(taken);
        NonNull::new(start.cast()).ok_or_else(refused)
    }

    /// Unmaps the address space on an early return.
    struct Taken {
        start: *mut libc::c_void,
        whole: usize,
    }

    impl Drop for Taken {
        fn drop(&mut self) {
            // SAFETY: mapped by `get` just now and not used by anyone.
            unsafe { libc::munmap(self.start, self.whole) };
        }
    }

    /// # Safety
    /// `start` came from `get` with these `bytes` and is not used afterwards.
    pub(super) unsafe fn give_back(start: NonNull<u8>, bytes: usize) {
        // SAFETY: by the caller's contract; `get` mapped exactly this range.
        unsafe { libc::munmap(start.as_ptr().cast(), bytes.next_multiple_of(PAGE)) };
    }
}

/// Fallback without memory mapping: the file is read.
#[cfg(not(target_os = "linux"))]
mod system {
    use super::{Error, NonNull, Part, Result};
    use std::alloc::{Layout, alloc_zeroed, dealloc};
    use std::io::{Read, Seek, SeekFrom};

    const ALIGN: usize = 64;

    pub(super) fn get(part: &Part<'_>) -> Result<NonNull<u8>> {
        let (mut file, offset, filled, bytes) = (part.file, part.offset, part.filled, part.bytes);
        let refused = || Error::OutOfMemory {
            what: "the bytes of a file".into(),
            bytes,
        };
        let layout = Layout::from_size_align(bytes, ALIGN).map_err(|_| refused())?;
        // SAFETY: `bytes` is not 0.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(refused)?;
        // SAFETY: at least `filled` bytes that this thread owns, all of them zero.
        let place = unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), filled) };
        let read = file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| file.read_exact(place));
        if let Err(error) = read {
            // SAFETY: allocated above and not used by anyone.
            unsafe { dealloc(start.as_ptr(), layout) };
            return Err(Error::file("read a file", &error));
        }
        Ok(start)
    }

    /// # Safety
    /// `start` came from `get` with these `bytes` and is not used afterwards.
    pub(super) unsafe fn give_back(start: NonNull<u8>, bytes: usize) {
        let layout = Layout::from_size_align(bytes, ALIGN).expect("get accepted these bytes");
        // SAFETY: by the caller's contract; `get` allocated with the same layout.
        unsafe { dealloc(start.as_ptr(), layout) };
    }
}

#[cfg(all(test, not(aif_loom)))]
mod tests {
    use super::*;
    use std::io::{Read, Seek, SeekFrom, Write};

    fn file(bytes: &[u8]) -> File {
        let mut path = std::env::temp_dir();
        path.push(format!(
            "aif-mapping-{}-{:p}",
            std::process::id(),
            &raw const bytes
        ));
        let mut file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(&path).unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn map(
        file: &File,
        offset: u64,
        filled: usize,
        bytes: usize,
        prefault: bool,
    ) -> Result<Mapping> {
        // SAFETY: the file has no name, and the tests only read it once it is filled.
        unsafe { Mapping::new(file, offset, filled, bytes, prefault) }
    }

    #[test]
    fn a_mapping_shows_the_file_and_writes_stay_out_of_it() {
        let content: Vec<u8> = (0..3 * PAGE + 100).map(|i| (i % 251) as u8).collect();
        let mut file = file(&content);
        for prefault in [false, true] {
            let filled = 2 * PAGE + 50;
            let mapping = map(&file, PAGE as u64, filled, 6 * PAGE + 1, prefault).unwrap();
            assert_eq!(mapping.len(), 6 * PAGE + 1);
            // SAFETY: the mapping's own bytes, which nothing else touches.
            let memory = unsafe { std::slice::from_raw_parts_mut(mapping.as_ptr(), mapping.len()) };
            assert_eq!(memory[..filled], content[PAGE..PAGE + filled]);
            assert!(memory[3 * PAGE..].iter().all(|&byte| byte == 0));
            memory[0] ^= 255;
            memory[6 * PAGE] = 1;
        }
        let mut read = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut read).unwrap();
        assert_eq!(read, content);
    }

    #[test]
    fn a_part_that_the_file_does_not_have_is_refused() {
        let file = file(&[1; 10]);
        for (offset, bytes) in [(0, 11), (PAGE as u64, 1), (1, 1), (u64::MAX - 65535, 70000)] {
            let error = map(&file, offset, bytes, 0, false).unwrap_err();
            assert!(error.to_string().contains("of 10 bytes"), "{error}");
        }
        assert_eq!(map(&file, 0, 0, 0, false).unwrap().len(), 1);
    }
}
