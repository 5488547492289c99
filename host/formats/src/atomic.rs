//! Writing a file so that a crash, a full disk or an error leaves either the old file or the new one, never half of one.
//!
//! The content goes to a hidden temporary file in the target's own folder (a rename is atomic within a file system only),
//! is forced to disk, and is then renamed over the target. On failure the temporary file is removed.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{FormatError, Result};

/// Distinguishes the temporary files of one process; the process id distinguishes processes.
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// Removes the temporary file unless it was renamed away.
struct Temporary {
    path: PathBuf,
    armed: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.armed {
            // The write has failed already; an undeletable leftover is not worth a second error.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Replaces `path` by what `produce` writes into the temporary path it is given.
///
/// The temporary file exists and is empty when `produce` is called. The old file stays as it was if `produce` fails.
pub fn replace(path: &Path, produce: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let name = path.file_name().ok_or_else(|| FormatError::refused(path, "the path has no file name"))?;
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}.{}.tmp", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
    let temporary = folder.join(hidden);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&temporary)
        .map_err(|source| FormatError::io("create", &temporary, source))?;
    let mut guard = Temporary { path: temporary, armed: true };
    produce(&guard.path)?;
    OpenOptions::new()
        .write(true)
        .open(&guard.path)
        .and_then(|file| file.sync_all())
        .map_err(|source| FormatError::io("write", path, source))?;
    fs::rename(&guard.path, path).map_err(|source| FormatError::io("replace", path, source))?;
    guard.armed = false;
    // Makes the rename itself durable. Some file systems cannot sync a folder; the data is safe without it.
    if let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
    Ok(())
}

/// Replaces `path` by what `write` puts into a buffered writer.
pub fn write_file(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    replace(path, |temporary| {
        let file = File::create(temporary).map_err(|source| FormatError::io("create", temporary, source))?;
        let mut buffered = BufWriter::with_capacity(1 << 20, file);
        write(&mut buffered).and_then(|()| buffered.flush()).map_err(|source| FormatError::io("write", path, source))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_keeps_the_old_file_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        write_file(&path, |out| out.write_all(b"old")).unwrap();
        let error = write_file(&path, |out| {
            out.write_all(b"half of the new")?;
            Err(io::Error::other("disk full"))
        });
        assert!(error.unwrap_err().to_string().contains("disk full"));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        write_file(&path, |out| out.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = write_file(Path::new("/nonexistent-folder/x"), |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("/nonexistent-folder"), "{error}");
    }
}
