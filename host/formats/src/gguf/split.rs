//! Models split over several files, `NAME-00001-of-0000N.gguf`, as llama.cpp's `gguf-split` writes them.
//!
//! The first part holds the metadata. Every part says in `split.no` (from 0) and `split.count` which of how many it is, and all
//! count the tensors of the whole in `split.tensors.count`; the names of the files follow from that.

use std::path::{Path, PathBuf};

use super::{Gguf, Value};
use crate::{FormatError, Result};

/// Most parts of one model.
const MAX_PARTS: u64 = 4096;

/// Adds the other parts, if this is the first of several.
pub(super) fn complete(mut first: Gguf) -> Result<Gguf> {
    let number = |file: &Gguf, key: &str| file.get(key).and_then(Value::as_u64);
    let count = number(&first, "split.count").unwrap_or(1);
    if count <= 1 {
        return Ok(first);
    }
    let path = first.path().to_owned();
    if count > MAX_PARTS {
        return Err(FormatError::invalid(&path, format!("`split.count` {count} is over the limit of {MAX_PARTS}")));
    }
    let own = number(&first, "split.no").unwrap_or(0);
    let Some(stem) = stem(&path, own, count) else {
        let reason = format!(
            "this is part {} of {count} of a model, so its name must end in `{}`; give the parts the names they had",
            own + 1,
            ending(own, count)
        );
        return Err(FormatError::invalid(&path, reason));
    };
    let name = |part: u64| -> PathBuf { path.with_file_name(format!("{stem}{}", ending(part, count))) };
    if own != 0 {
        let reason = format!("this is part {} of {count} of a model; open the first, `{}`", own + 1, name(0).display());
        return Err(FormatError::invalid(&path, reason));
    }
    for part in 1..count {
        let file = name(part);
        if !file.is_file() {
            let reason = format!("part {} of {count}, `{}`, is not beside it", part + 1, file.display());
            return Err(FormatError::invalid(&path, reason));
        }
        let other = Gguf::open_part(&file)?;
        let says = (number(&other, "split.no"), number(&other, "split.count"));
        if says != (Some(part), Some(count)) {
            let reason = format!("by its name this is part {} of {count}, but its metadata says otherwise", part + 1);
            return Err(FormatError::invalid(&file, reason));
        }
        first.append(other)?;
    }
    if let Some(total) = number(&first, "split.tensors.count")
        && total != first.tensors().len() as u64
    {
        let reason = format!("the {count} parts hold {} tensors, not the {total} of the whole model", first.tensors().len());
        return Err(FormatError::invalid(&path, reason));
    }
    Ok(first)
}

/// End of a part's file name; `part` counts from 0.
fn ending(part: u64, count: u64) -> String {
    format!("-{:05}-of-{count:05}.gguf", part + 1)
}

fn stem(path: &Path, part: u64, count: u64) -> Option<&str> {
    path.file_name()?.to_str()?.strip_suffix(&ending(part, count))
}

/// Whether a file's name says that it is a part of a split model, but not the first.
pub(crate) fn is_later_part(path: &Path) -> bool {
    let part = || {
        let (rest, count) = path.file_name()?.to_str()?.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (_, part) = rest.rsplit_once('-')?;
        let is_number = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
        (is_number(part) && is_number(count)).then_some(part)
    };
    part().is_some_and(|part| part != "00001")
}
