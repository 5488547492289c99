//! The left and the right side of a product: floats, or halves that are decoded on the way into panels.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::format::{Format, Weight};
use crate::isa::Isa;
use crate::quant::{Decoder, decoder};

/// A borrowed matrix with any strides: element `(i, j)` is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy, Debug)]
pub struct MatRef<'a, T = f32> {
    /// Starts at element `(0, 0)`.
    pub data: &'a [T],
    /// Distance between rows, in elements.
    pub row_stride: usize,
    /// Distance between columns, in elements.
    pub col_stride: usize,
}

impl<'a, T> MatRef<'a, T> {
    /// A row-major matrix whose rows are `row_stride` apart.
    pub fn new(data: &'a [T], row_stride: usize) -> MatRef<'a, T> {
        MatRef { data, row_stride, col_stride: 1 }
    }

    /// The transpose of this matrix; nothing is moved.
    pub fn transposed(self) -> MatRef<'a, T> {
        MatRef { data: self.data, row_stride: self.col_stride, col_stride: self.row_stride }
    }

    /// Panics unless the matrix holds `rows` by `cols` elements.
    #[track_caller]
    pub(crate) fn check(&self, rows: usize, cols: usize) {
        if rows > 0 && cols > 0 {
            let last = (rows - 1) * self.row_stride + (cols - 1) * self.col_stride;
            assert!(last < self.data.len(), "operand is shorter than its {rows} by {cols} shape");
        }
    }

    /// Where element `(i, j)` is.
    pub(crate) fn at(&self, i: usize, j: usize) -> usize {
        i * self.row_stride + j * self.col_stride
    }

    /// The same strides over other storage of the same length.
    fn over<U>(&self, data: &'a [U]) -> MatRef<'a, U> {
        MatRef { data, row_stride: self.row_stride, col_stride: self.col_stride }
    }
}

/// A side of a product. Halves are decoded exactly; sums are `f32` whatever the storage.
#[derive(Clone, Copy, Debug)]
pub enum Operand<'a> {
    /// Single precision.
    F32(MatRef<'a>),
    /// IEEE half precision.
    F16(MatRef<'a, f16>),
    /// Upper halves of IEEE singles.
    BF16(MatRef<'a, bf16>),
}

impl<'a> From<MatRef<'a>> for Operand<'a> {
    fn from(matrix: MatRef<'a>) -> Operand<'a> {
        Operand::F32(matrix)
    }
}

impl<'a> From<MatRef<'a, f16>> for Operand<'a> {
    fn from(matrix: MatRef<'a, f16>) -> Operand<'a> {
        Operand::F16(matrix)
    }
}

impl<'a> From<MatRef<'a, bf16>> for Operand<'a> {
    fn from(matrix: MatRef<'a, bf16>) -> Operand<'a> {
        Operand::BF16(matrix)
    }
}

impl<'a> Operand<'a> {
    /// The elements of a weight that is stored as floats or halves and happens to be aligned.
    pub(crate) fn of_weight(w: &Weight<'a>) -> Option<Operand<'a>> {
        fn elements<T>(data: &[u8]) -> Option<&[T]> {
            // SAFETY: only called for floats and halves, where every bit pattern is a value.
            let (before, elements, after) = unsafe { data.align_to::<T>() };
            (before.is_empty() && after.is_empty() && cfg!(target_endian = "little")).then_some(elements)
        }
        match w.format {
            Format::F32 => elements::<f32>(w.data).map(|data| MatRef::new(data, w.cols).into()),
            Format::F16 => elements::<f16>(w.data).map(|data| MatRef::new(data, w.cols).into()),
            Format::BF16 => elements::<bf16>(w.data).map(|data| MatRef::new(data, w.cols).into()),
            _ => None,
        }
    }

    /// The transpose; nothing is moved.
    pub(crate) fn transposed(self) -> Operand<'a> {
        match self {
            Operand::F32(matrix) => Operand::F32(matrix.transposed()),
            Operand::F16(matrix) => Operand::F16(matrix.transposed()),
            Operand::BF16(matrix) => Operand::BF16(matrix.transposed()),
        }
    }

    /// Panics unless the matrix holds `rows` by `cols` elements.
    #[track_caller]
    pub(crate) fn check(&self, rows: usize, cols: usize) {
        match self {
            Operand::F32(matrix) => matrix.check(rows, cols),
            Operand::F16(matrix) => matrix.check(rows, cols),
            Operand::BF16(matrix) => matrix.check(rows, cols),
        }
    }

    /// How packers read this operand with the instructions of `isa`.
    pub(crate) fn source(self, isa: Isa) -> Source<'a> {
        match self {
            Operand::F32(matrix) => Source::Floats(matrix),
            Operand::F16(m) => Source::Halves(Halves {
                matrix: m.over(m.data.reinterpret_cast()),
                decode: decoder(isa, Format::F16),
                one: |bits| f16::from_bits(bits).to_f32(),
            }),
            Operand::BF16(m) => Source::Halves(Halves {
                matrix: m.over(m.data.reinterpret_cast()),
                decode: decoder(isa, Format::BF16),
                one: |bits| bf16::from_bits(bits).to_f32(),
            }),
        }
    }
}

/// An operand as packers see it.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    Floats(MatRef<'a>),
    Halves(Halves<'a>),
}

impl<'a> From<MatRef<'a>> for Source<'a> {
    fn from(matrix: MatRef<'a>) -> Source<'a> {
        Source::Floats(matrix)
    }
}

/// Halves of either kind and what decodes them.
#[derive(Clone, Copy)]
pub(crate) struct Halves<'a> {
    pub(crate) matrix: MatRef<'a, u16>,
    decode: Decoder,
    one: fn(u16) -> f32,
}

impl Halves<'_> {
    /// Decodes the contiguous elements from `start`.
    pub(crate) fn run(&self, start: usize, out: &mut [f32]) {
        let src = &self.matrix.data[start..][..out.len()];
        if cfg!(target_endian = "big") {
            // Decoders read the little-endian bytes of files.
            out.iter_mut().zip(src).for_each(|(out, &bits)| *out = (self.one)(bits));
        } else {
            // SAFETY: `src` is as long as `out`; the decoder suits the pool's level.
            unsafe { (self.decode)(src.as_ptr().cast(), out.len(), out.as_mut_ptr()) };
        }
    }

    /// Element `(i, j)`.
    pub(crate) fn get(&self, i: usize, j: usize) -> f32 {
        (self.one)(self.matrix.data[self.matrix.at(i, j)])
    }
}
