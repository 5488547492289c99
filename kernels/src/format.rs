//! Weight formats: block geometry of the GGUF encodings and a borrowed weight matrix.
//!
//! Quantized rows are sequences of 32-element blocks laid along the columns:
//!
//! ```text
//! Q8_0  d:f16  q:i8 x 32                      34 bytes   w = d q
//! Q4_0  d:f16  nibbles x 16                   18 bytes   w = d (q - 8)
//! Q4_1  d:f16  m:f16  nibbles x 16            20 bytes   w = d q + m
//! ```
//!
//! Byte `j` of the nibbles holds element `j` (low) and element `j + 16` (high).

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
}

impl Format {
    /// All formats.
    pub const ALL: [Format; 6] = [Format::F32, Format::F16, Format::BF16, Format::Q8_0, Format::Q4_0, Format::Q4_1];

    /// Elements in one block; a row's length must be a multiple of it.
    pub const fn block_len(self) -> usize {
        match self {
            Format::F32 | Format::F16 | Format::BF16 => 1,
            Format::Q8_0 | Format::Q4_0 | Format::Q4_1 => 32,
        }
    }

    /// Bytes in one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Format::F32 => 4,
            Format::F16 | Format::BF16 => 2,
            Format::Q8_0 => 34,
            Format::Q4_0 => 18,
            Format::Q4_1 => 20,
        }
    }

    /// Bytes of one row of `cols` elements.
    ///
    /// # Panics
    /// When `cols` is not a whole number of blocks.
    #[track_caller]
    pub const fn row_bytes(self, cols: usize) -> usize {
        assert!(cols.is_multiple_of(self.block_len()), "row length is not a whole number of blocks");
        cols / self.block_len() * self.block_bytes()
    }
}

/// A borrowed weight matrix `[rows, cols]`, row-major, blocks along the columns.
///
/// The bytes come straight out of mapped files, so they may have any alignment.
#[derive(Clone, Copy, Debug)]
pub struct Weight<'a> {
    /// Encoding of `data`.
    pub format: Format,
    /// Output features of a linear layer, or vocabulary of an embedding.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// Exactly `rows * format.row_bytes(cols)` bytes.
    pub data: &'a [u8],
}

impl<'a> Weight<'a> {
    /// Checks the length of `data` against the shape.
    ///
    /// # Panics
    /// When the length is wrong or `cols` is not a whole number of blocks.
    #[track_caller]
    pub fn new(format: Format, rows: usize, cols: usize, data: &'a [u8]) -> Weight<'a> {
        let weight = Weight { format, rows, cols, data };
        weight.check();
        weight
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.format.row_bytes(self.cols)
    }

    /// Encoded bytes of row `row`.
    #[track_caller]
    pub fn row(&self, row: usize) -> &'a [u8] {
        let bytes = self.row_bytes();
        &self.data[row * bytes..][..bytes]
    }

    #[track_caller]
    pub(crate) fn check(&self) {
        let expected = self.rows.checked_mul(self.row_bytes());
        assert_eq!(Some(self.data.len()), expected, "weight bytes do not match its shape and format");
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
    }

    #[test]
    #[should_panic(expected = "weight bytes")]
    fn short_data_is_refused() {
        Weight::new(Format::Q4_0, 2, 32, &[0; 35]);
    }
}
