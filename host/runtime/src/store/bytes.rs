//! Bytes that weights are made of: who owns them, and values to and from blocks of a format.

use std::ops::Range;
use std::sync::Arc;

use swift_kernels::quant;

use crate::{Error, Format, Result};

/// Who holds the bytes of weights.
pub trait Owner: Send + Sync {
    /// The bytes, the same at every call.
    fn bytes(&self) -> &[u8];

    /// The bytes will hardly be read again, since the device keeps the weight in another form: their memory can go. Gives the owner to
    /// ask from now on, if that is another one.
    fn release(&self) -> Option<Arc<dyn Owner>> {
        None
    }

    /// As [`Owner::release`], of a part of the bytes, and before the rest was read. They stay where they are.
    fn release_part(&self, _part: Range<usize>) {}
}

impl Owner for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// Read-only bytes that somebody else owns, for example a range of a mapped file. Cloning shares them.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn Owner>,
    range: Range<usize>,
}

impl Bytes {
    /// `range` of the owner's bytes.
    ///
    /// # Errors
    /// When the owner has fewer bytes.
    pub fn new(owner: Arc<dyn Owner>, range: Range<usize>) -> Result<Bytes> {
        let len = owner.bytes().len();
        if range.start > range.end || range.end > len {
            return Err(Error::tensor("weight", "(bytes)", format!("lies at {range:?} of a file of {len} bytes")));
        }
        Ok(Bytes { owner, range })
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // An owner whose length changes after the check breaks its promise; it gets a panic, not a wild read.
        &self.owner.bytes()[self.range.clone()]
    }

    /// Their number.
    pub fn count(&self) -> usize {
        self.range.len()
    }

    /// Lets the memory of a part of the bytes go.
    pub(super) fn release_part(&self, part: Range<usize>) {
        self.owner.release_part(self.range.start + part.start..self.range.start + part.end);
    }

    /// Lets their memory go; they may lie elsewhere afterwards.
    pub(super) fn release(&mut self) {
        if let Some(owner) = self.owner.release() {
            self.owner = owner;
        }
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Bytes {
        let range = 0..bytes.len();
        Bytes { owner: Arc::new(bytes), range }
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bytes({:?})", self.range)
    }
}

/// The values of whole blocks of a format; bytes past the last whole block are ignored.
pub fn decode(format: Format, bytes: &[u8]) -> Vec<f32> {
    let blocks = bytes.len() / format.block_bytes();
    let mut out = vec![0.0; blocks * format.block_len()];
    quant::dequantize(format, &bytes[..blocks * format.block_bytes()], &mut out);
    out
}

/// Blocks of a format that hold `values`, which are whole blocks; the rounding is that of the format's reference.
///
/// # Panics
/// When they are not.
#[track_caller]
pub fn encode(format: Format, values: &[f32]) -> Vec<u8> {
    let mut out = vec![0; format.row_bytes(values.len())];
    quant::quantize(format, values, &mut out);
    out
}
