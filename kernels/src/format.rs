//! Weight formats: block geometry of the GGUF encodings and of NF4, and a borrowed weight matrix.
//!
//! Quantized rows are sequences of blocks laid along the columns; `d` and `m` are halves:
//!
//! ```text
//! Q8_0    d  q:i8 x 32                                    34 bytes of 32   w = d q
//! Q4_0    d  nibbles x 16                                 18       of 32   w = d (q - 8)
//! Q4_1    d  m  nibbles x 16                              20       of 32   w = d q + m
//! Q5_0    d  high bits:u32  nibbles x 16                  22       of 32   w = d (q - 16)
//! Q5_1    d  m  high bits:u32  nibbles x 16               24       of 32   w = d q + m
//! IQ4_NL  d  nibbles x 16                                 18       of 32   w = d table[q]
//! Q2_K    scales x 16  pairs x 64  d  m                   84       of 256  w = d s q - m t      per 16
//! Q3_K    high bits x 32  pairs x 64  scales x 12  d     110       of 256  w = d (s - 32)(q - 4) per 16
//! Q4_K    d  m  scales x 12  nibbles x 128               144       of 256  w = d s q - m t      per 32
//! Q5_K    d  m  scales x 12  high bits x 32  nibbles x 128  176    of 256  w = d s q - m t      per 32
//! Q6_K    nibbles x 128  pairs x 64  scales:i8 x 16  d   210       of 256  w = d s (q - 32)     per 16
//! NF4     absmax:f32  nibbles x 32                        36       of 64   w = absmax table[q]
//! ```
//!
//! Byte `j` of the nibbles of a block of 32 holds element `j` (low) and element `j + 16` (high);
//! the order within the others is in [`crate::quant`]'s portable decoders.
//!
//! NF4 is that of bitsandbytes, with each block's scale moved beside its nibbles.

use std::fmt;
use std::ops::Range;

use crate::panels::{PANEL, repacked_bytes};

/// Storage format of a weight matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// IEEE single precision, little-endian.
    F32,
    /// IEEE half precision.
    F16,
    /// Upper half of an IEEE single.
    BF16,
    /// 8-bit integers with one scale for every 32.
    Q8_0,
    /// 4-bit integers with one scale for every 32, centred on 8.
    Q4_0,
    /// 4-bit integers with one scale and one minimum for every 32.
    Q4_1,
    /// 5-bit integers with one scale for every 32, centred on 16.
    Q5_0,
    /// 5-bit integers with one scale and one minimum for every 32.
    Q5_1,
    /// 4-bit indices into a fixed table of 16 levels, with one scale for every 32.
    Iq4Nl,
    /// 2-bit integers in blocks of 256; scales and minima for every 16.
    Q2K,
    /// 3-bit integers in blocks of 256; scales for every 16.
    Q3K,
    /// 4-bit integers in blocks of 256; scales and minima for every 32.
    Q4K,
    /// 5-bit integers in blocks of 256; scales and minima for every 32.
    Q5K,
    /// 6-bit integers in blocks of 256; scales for every 16.
    Q6K,
    /// 4-bit NormalFloat (Dettmers et al. 2023, QLoRA), one scale for every 64.
    Nf4,
}

impl Format {
    /// All formats.
    pub const ALL: [Format; 15] = [
        Format::F32,
        Format::F16,
        Format::BF16,
        Format::Q8_0,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Iq4Nl,
        Format::Q2K,
        Format::Q3K,
        Format::Q4K,
        Format::Q5K,
        Format::Q6K,
        Format::Nf4,
    ];

    /// Elements in one block, a power of two; a row's length must be a multiple of it.
    pub const fn block_len(self) -> usize {
        match self {
            Format::F32 | Format::F16 | Format::BF16 => 1,
            Format::Q8_0 | Format::Q4_0 | Format::Q4_1 | Format::Q5_0 | Format::Q5_1 | Format::Iq4Nl => 32,
            Format::Nf4 => 64,
            Format::Q2K | Format::Q3K | Format::Q4K | Format::Q5K | Format::Q6K => 256,
        }
    }

    /// Bytes in one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Format::F32 => 4,
            Format::F16 | Format::BF16 => 2,
            Format::Q8_0 => 34,
            Format::Q4_0 | Format::Iq4Nl => 18,
            Format::Q4_1 => 20,
            Format::Q5_0 => 22,
            Format::Q5_1 => 24,
            Format::Q2K => 84,
            Format::Q3K => 110,
            Format::Q4K => 144,
            Format::Q5K => 176,
            Format::Q6K => 210,
            Format::Nf4 => 36,
        }
    }

    /// Name as in GGUF files.
    pub const fn name(self) -> &'static str {
        match self {
            Format::F32 => "F32",
            Format::F16 => "F16",
            Format::BF16 => "BF16",
            Format::Q8_0 => "Q8_0",
            Format::Q4_0 => "Q4_0",
            Format::Q4_1 => "Q4_1",
            Format::Q5_0 => "Q5_0",
            Format::Q5_1 => "Q5_1",
            Format::Iq4Nl => "IQ4_NL",
            Format::Q2K => "Q2_K",
            Format::Q3K => "Q3_K",
            Format::Q4K => "Q4_K",
            Format::Q5K => "Q5_K",
            Format::Q6K => "Q6_K",
            Format::Nf4 => "NF4",
        }
    }

    /// Blocks in `len` elements.
    const fn blocks(self, len: usize) -> usize {
        // Lengths of blocks are powers of two: a shift where the compiler would divide.
        len >> self.block_len().trailing_zeros()
    }

    /// Bytes of one row of `cols` elements.
    ///
    /// # Panics
    /// When `cols` is not a whole number of blocks.
    #[track_caller]
    pub const fn row_bytes(self, cols: usize) -> usize {
        assert!(cols & (self.block_len() - 1) == 0, "row length is not a whole number of blocks");
        self.blocks(cols) * self.block_bytes()
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How the rows of a weight lie in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// One after the other, as in files.
    #[default]
    Rows,
    /// In panels, as [`crate::panels::repack`] writes them.
    Panels,
}

/// A borrowed weight matrix `[rows, cols]`, row-major with blocks along the columns, or in panels.
///
/// The bytes may come straight out of mapped files, so they may have any alignment.
#[derive(Clone, Copy, Debug)]
pub struct Weight<'a> {
    /// Encoding of `data`.
    pub format: Format,
    /// Order of `data`.
    pub layout: Layout,
    /// Output features of a linear layer, or vocabulary of an embedding.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// Exactly `rows * format.row_bytes(cols)` bytes, or [`repacked_bytes`] of the shape; of a stack of matrices, those of each.
    pub data: &'a [u8],
}

impl<'a> Weight<'a> {
    /// Rows as in a file; checks the length of `data` against the shape.
    ///
    /// # Panics
    /// When the length is wrong or `cols` is not a whole number of blocks.
    #[track_caller]
    pub fn new(format: Format, rows: usize, cols: usize, data: &'a [u8]) -> Weight<'a> {
        let weight = Weight { format, layout: Layout::Rows, rows, cols, data };
        weight.check();
        weight
    }

    /// Panels; checks the length of `data` against the shape.
    ///
    /// # Panics
    /// As [`Weight::new`], and when the format has no panels.
    #[track_caller]
    pub fn in_panels(format: Format, rows: usize, cols: usize, data: &'a [u8]) -> Weight<'a> {
        let weight = Weight { format, layout: Layout::Panels, rows, cols, data };
        weight.check();
        weight
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.format.row_bytes(self.cols)
    }

    /// Bytes of `rows` rows that follow each other; in panels, of whole panels.
    #[track_caller]
    pub(crate) fn bytes_of(&self, rows: usize) -> usize {
        match self.layout {
            Layout::Rows => rows.checked_mul(self.row_bytes()).expect("a weight fits into memory"),
            Layout::Panels => repacked_bytes(self.format, rows, self.cols).expect("the format can be repacked"),
        }
    }

    /// Some of the rows; of panels, whole ones but for the last.
    #[track_caller]
    pub(crate) fn rows(&self, rows: Range<usize>) -> Weight<'a> {
        assert!(self.layout == Layout::Rows || rows.start.is_multiple_of(PANEL), "panels are not cut through");
        let data = &self.data[self.bytes_of(rows.start)..][..self.bytes_of(rows.len())];
        Weight { rows: rows.len(), data, ..*self }
    }

    /// Encoded bytes of row `row`.
    ///
    /// # Panics
    /// When there is no such row, or the weight lies in panels.
    #[track_caller]
    pub fn row(&self, row: usize) -> &'a [u8] {
        assert_eq!(self.layout, Layout::Rows, "a row of a panel is not contiguous");
        let bytes = self.row_bytes();
        &self.data[row * bytes..][..bytes]
    }

    /// The elements of an F32 weight that happens to be aligned.
    pub(crate) fn floats(&self) -> Option<&'a [f32]> {
        if self.format != Format::F32 || cfg!(target_endian = "big") {
            return None;
        }
        // SAFETY: every bit pattern is a float.
        let (before, floats, after) = unsafe { self.data.align_to::<f32>() };
        (before.is_empty() && after.is_empty()).then_some(floats)
    }

    #[track_caller]
    pub(crate) fn check(&self) {
        assert_eq!(self.data.len(), self.bytes_of(self.rows), "weight bytes do not match its shape and format");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_geometry_is_ggml_s() {
        assert_eq!(Format::Q4_1.row_bytes(64), 40);
        assert_eq!(Format::Q8_0.row_bytes(32), 34);
        assert_eq!(Format::BF16.row_bytes(7), 14);
        assert_eq!(Format::Q4K.row_bytes(512), 288);
        assert_eq!(Format::Nf4.row_bytes(576), 324);
    }

    #[test]
    #[should_panic(expected = "weight bytes")]
    fn short_data_is_refused() {
        Weight::new(Format::Q4_0, 2, 32, &[0; 35]);
    }

    #[test]
    #[should_panic(expected = "whole number of blocks")]
    fn ragged_rows_are_refused() {
        // 2 x 128 elements would make one block, but not one of a row.
        Weight::new(Format::Q4K, 2, 128, &[0; 144]);
    }
}
