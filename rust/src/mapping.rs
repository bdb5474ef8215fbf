//! Bytes of a file as memory that may be written to without changing the file.

use crate::error::{Error, Result};
use std::fs::File;
use std::ptr::NonNull;

/// The bytes of a part of a file, followed by zeros: pages that nobody writes to are those of the system's
/// own cache of the file, shared with every process that maps it; a page that is written to becomes a copy.
///
/// The file must stay as it is while it is mapped: to cut it short makes a read of what is gone end the
/// process. To delete it, or to rename another over it, is harmless.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
    // Invariant: `start` came from `system::get(.., bytes)`, which are not 0.
}

// SAFETY: the mapping owns its memory, and hands out raw pointers only.
unsafe impl Send for Mapping {}
// SAFETY: as above; whoever uses the pointer answers for the accesses.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `filled` bytes of `file` from `offset` on, in `bytes` bytes of address space. What lies between
    /// the two is zero from the first whole page on; what is left of the last page of the file's part shows
    /// the file's next bytes. With `prefault` the pages are mapped at once.
    ///
    /// # Errors
    /// [`Error::Request`] if `offset` is no multiple of [`PAGE`], or the file is shorter than that;
    /// [`Error::OutOfMemory`] and [`Error::File`] as the system says.
    pub fn new(
        file: &File,
        offset: u64,
        filled: usize,
        bytes: usize,
        prefault: bool,
    ) -> Result<Self> {
        let length = file
            .metadata()
            .map_err(|error| Error::file("its length", &error))?
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
        let start = system::get(file, offset, filled, bytes, prefault)?;
        Ok(Self { start, bytes })
    }

    /// Where the memory starts; valid for [`len`](Self::len) bytes while the mapping lives.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Its size in bytes, the zeros behind the file's included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Never: a mapping has at least one byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: by the invariant; given back only here.
        unsafe { system::give_back(self.start, self.bytes) };
    }
}

/// What offsets are multiples of: the largest small page of the systems that we know.
pub const PAGE: usize = 64 << 10;

#[cfg(target_os = "linux")]
mod system {
    use super::{Error, File, NonNull, PAGE, Result};
    use std::io;
    use std::os::fd::AsRawFd;
    use std::ptr;

    pub(super) fn get(
        file: &File,
        offset: u64,
        filled: usize,
        bytes: usize,
        prefault: bool,
    ) -> Result<NonNull<u8>> {
        let refused = || Error::OutOfMemory {
            what: "the address space of a mapped file".into(),
            bytes,
        };
        let offset = libc::off_t::try_from(offset).map_err(|_| refused())?;
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
        if filled > 0 {
            // SAFETY: replaces the first pages of the mapping just made, which nobody uses yet, by a private
            // mapping of the file: what is written to it stays in this process.
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
                    "to be mapped as memory",
                    &io::Error::last_os_error(),
                ));
            }
            if prefault {
                // SAFETY: advice on a range that is ours alone. A wish: older kernels do not know it.
                unsafe { libc::madvise(start, filled, libc::MADV_POPULATE_READ) };
            }
        }
        std::mem::forget(taken);
        NonNull::new(start.cast()).ok_or_else(refused)
    }

    /// Gives the address space back unless all went well.
    struct Taken {
        start: *mut libc::c_void,
        whole: usize,
    }

    impl Drop for Taken {
        fn drop(&mut self) {
            // SAFETY: what `get` has just mapped and nobody uses.
            unsafe { libc::munmap(self.start, self.whole) };
        }
    }

    /// # Safety
    /// `start` came from `get(.., bytes, ..)` and is not used any more.
    pub(super) unsafe fn give_back(start: NonNull<u8>, bytes: usize) {
        // SAFETY: the caller's; `get` mapped exactly this range.
        unsafe { libc::munmap(start.as_ptr().cast(), bytes.next_multiple_of(PAGE)) };
    }
}

/// Where files are not mapped, they are read.
#[cfg(not(target_os = "linux"))]
mod system {
    use super::{Error, File, NonNull, Result};
    use std::alloc::{Layout, alloc_zeroed, dealloc};
    use std::io::{Read, Seek, SeekFrom};

    const ALIGN: usize = 64;

    pub(super) fn get(
        mut file: &File,
        offset: u64,
        filled: usize,
        bytes: usize,
        _prefault: bool,
    ) -> Result<NonNull<u8>> {
        let refused = || Error::OutOfMemory {
            what: "the bytes of a file".into(),
            bytes,
        };
        let layout = Layout::from_size_align(bytes, ALIGN).map_err(|_| refused())?;
        // SAFETY: `bytes` is not 0.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(refused)?;
        // SAFETY: at least `filled` bytes that are ours alone, all of them zero.
        let place = unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), filled) };
        let read = file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| file.read_exact(place));
        if let Err(error) = read {
            // SAFETY: allocated above and used by nobody.
            unsafe { dealloc(start.as_ptr(), layout) };
            return Err(Error::file("to be read", &error));
        }
        Ok(start)
    }

    /// # Safety
    /// `start` came from `get(.., bytes, ..)` and is not used any more.
    pub(super) unsafe fn give_back(start: NonNull<u8>, bytes: usize) {
        let layout = Layout::from_size_align(bytes, ALIGN).expect("get accepted these bytes");
        // SAFETY: the caller's; `get` allocated with the same layout.
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

    #[test]
    fn a_mapping_shows_the_file_and_writes_stay_out_of_it() {
        let content: Vec<u8> = (0..3 * PAGE + 100).map(|i| (i % 251) as u8).collect();
        let mut file = file(&content);
        for prefault in [false, true] {
            let filled = 2 * PAGE + 50;
            let mapping = Mapping::new(&file, PAGE as u64, filled, 6 * PAGE + 1, prefault).unwrap();
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
            let error = Mapping::new(&file, offset, bytes, 0, false).unwrap_err();
            assert!(error.to_string().contains("of 10 bytes"), "{error}");
        }
        assert_eq!(Mapping::new(&file, 0, 0, 0, false).unwrap().len(), 1);
    }
}
