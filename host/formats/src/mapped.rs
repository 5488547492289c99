//! A file's bytes, mapped or owned.

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

use crate::{FormatError, Result};

/// Read-only bytes of one file.
#[derive(Debug)]
pub(crate) enum FileBytes {
    /// The file mapped into memory.
    Mapped(Mmap),
    /// Bytes that were never in a file; also the empty file, which cannot be mapped.
    Owned(Vec<u8>),
}

impl FileBytes {
    /// Maps `path`.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|source| FormatError::io("open", path, source))?;
        let metadata = file.metadata().map_err(|source| FormatError::io("inspect", path, source))?;
        if !metadata.is_file() {
            return Err(FormatError::invalid(path, "this is not a regular file"));
        }
        if metadata.len() == 0 {
            return Ok(Self::Owned(Vec::new()));
        }
        // SAFETY: the mapping is private and read-only, and all access goes through `&[u8]`. Another process that
        // truncates the file while it is mapped would fault this one (SIGBUS), as with every mapped reader; our own
        // writers never truncate, they rename a new file over the old name, which leaves this mapping intact.
        let map = unsafe { Mmap::map(&file) }.map_err(|source| FormatError::io("map", path, source))?;
        Ok(Self::Mapped(map))
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}
