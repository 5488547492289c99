//! A file's bytes, mapped or owned.

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use memmap2::{Mmap, UncheckedAdvice};

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

    /// Takes the pages of `part` out of this process's memory, if it is of this mapping. Reading them again brings them back, from the
    /// system's cache if they are still there. A hint: nothing depends on it.
    pub(crate) fn release(&self, part: &[u8]) {
        let Self::Mapped(map) = self else { return };
        let start = (part.as_ptr() as usize).wrapping_sub(map.as_ptr() as usize);
        if start < map.len() && part.len() <= map.len() - start {
            // SAFETY: the range lies in the mapping, which is read-only and of a file, so that its bytes are the same when they are read
            // from the file again. The call widens it to whole pages.
            let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, part.len()) };
        }
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
