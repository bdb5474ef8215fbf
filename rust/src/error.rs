//! The one error type of the crate. A message says what was given, what was expected, and how to fix it.

use std::fmt;

/// The result of everything in this crate that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong.
///
/// A variant stands for what the caller can do about it, and the Python binding maps each to one
/// exception class; the message inside carries the values.
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
        /// What the memory was for, and how far the operation had come.
        what: String,
        /// How many bytes were asked for.
        bytes: usize,
    },
    /// A bounded cache has no row left, because readers still hold all that were given up.
    RowsHeld {
        /// Rows that wait for readers to leave.
        retired: usize,
        /// Rows the bound allows, the slack included.
        limit: usize,
    },
    /// The system refused something with a file.
    File {
        /// What was asked of it, after "a file refused".
        what: &'static str,
        /// What the system said.
        said: String,
        /// The system's number for it.
        code: Option<i32>,
    },
    /// A cache handle that belongs to no living cache.
    StaleHandle(u64),
    /// A panic interrupted a writer, so that what it guarded cannot be trusted any more.
    Poisoned(&'static str),
    /// A bounded queue is full.
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
            Self::RowsHeld { retired, limit } => write!(
                f,
                "no row is free: {retired} replaced rows still wait for readers, and the bound allows {limit} rows; \
                 a reader has been inside the cache for very long, or capacity_bytes is too small for the write rate: \
                 raise it, or write smaller batches"
            ),
            Self::File { what, said, .. } => write!(f, "a file refused {what}: {said}"),
            Self::StaleHandle(handle) => write!(
                f,
                "cache handle {handle} belongs to no living cache; keep the EmbeddingCache alive for as long as \
                 compiled programs use its handle"
            ),
            Self::Poisoned(what) => write!(
                f,
                "{what} was left half-changed when a writer panicked; it can still be read, but not written: \
                 build a new one from its contents"
            ),
        }
    }
}

impl std::error::Error for Error {}

impl Error {
    /// What the system said when `what` was asked of a file.
    pub(crate) fn file(what: &'static str, error: &std::io::Error) -> Self {
        Self::File {
            what,
            said: error.to_string(),
            code: error.raw_os_error(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_carry_the_values() {
        let text = Error::RowsHeld {
            retired: 7,
            limit: 9,
        }
        .to_string();
        assert!(
            text.contains("7 replaced rows") && text.contains("9 rows"),
            "{text}"
        );
        let text = Error::OutOfMemory {
            what: "a segment".into(),
            bytes: 4096,
        }
        .to_string();
        assert!(text.contains("4096 bytes for a segment"), "{text}");
        assert!(Error::StaleHandle(12).to_string().contains("handle 12"));
    }
}
