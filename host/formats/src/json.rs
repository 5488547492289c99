//! JSON files of bounded size.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use crate::{FormatError, Result};

/// Largest configuration file that is read. Real ones are kilobytes; shard indexes reach a few megabytes.
pub(crate) const MAX_CONFIG_BYTES: u64 = 64 << 20;

/// Reads a JSON file of at most `limit` bytes. A byte order mark is skipped; nesting is bounded by `serde_json` (128).
pub fn read_json(path: &Path, limit: u64) -> Result<Value> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(limit.saturating_add(1)).read_to_end(&mut bytes))
        .map_err(|source| FormatError::io("read", path, source))?;
    if bytes.len() as u64 > limit {
        return Err(FormatError::invalid(path, format!("the file is larger than the limit of {limit} bytes")));
    }
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    serde_json::from_slice(text).map_err(|error| FormatError::invalid(path, format!("this is not valid JSON: {error}")))
}
