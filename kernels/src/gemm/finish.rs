//! What happens to finished sums between the registers and the output, while a tile is in the first-level cache.

use half::{bf16, f16};

use super::blocked::Out;
use super::fused::Addend;
use super::kernel::Epilogue;
use crate::elementwise::{self, Unary};
use crate::isa::Isa;
use crate::pool::Disjoint;

/// `c = activation(sums) + addend`, rounded to the storage of `c`.
pub(crate) struct Finish<'a> {
    pub(super) isa: Isa,
    pub(super) activation: Option<Unary>,
    pub(super) addend: Addend<'a>,
    pub(super) c: Cells<'a>,
    pub(super) ldc: usize,
}

/// Cells of an output, for tasks that write different ones.
#[derive(Clone, Copy)]
pub(super) enum Cells<'a> {
    F32(Disjoint<'a, f32>),
    F16(Disjoint<'a, f16>),
    BF16(Disjoint<'a, bf16>),
}

impl<'a> Finish<'a> {
    /// Into floats, whose rows are `ldc` apart.
    pub(crate) fn new(isa: Isa, activation: Option<Unary>, addend: Addend<'a>, c: &'a mut [f32], ldc: usize) -> Finish<'a> {
        Finish { isa, activation, addend, c: Cells::F32(Disjoint::new(c)), ldc }
    }

    /// What is added in the end.
    pub(crate) fn addend(&self) -> Addend<'a> {
        self.addend
    }

    /// Where the sums of a product go, and what its inner kernels do to them: what is added to a plain output they add themselves.
    pub(crate) fn out(&'a self, alpha: f32, bias: Option<&'a [f32]>) -> (Out<'a>, Epilogue<'a>) {
        let plain = Epilogue { alpha, beta: 0.0, bias, addend: None };
        let (Cells::F32(c), None) = (self.c, self.activation) else { return (Out::Finished(self), plain) };
        let epilogue = match self.addend {
            Addend::None => plain,
            Addend::Output { beta } => Epilogue { beta, ..plain },
            Addend::Matrix { values, row_stride, beta } => Epilogue { beta, addend: Some((values, row_stride)), ..plain },
        };
        (Out::Plain(c, self.ldc), epilogue)
    }

    /// The output, if sums of passes may wait in it.
    pub(super) fn sums(&self) -> Option<(Disjoint<'a, f32>, usize)> {
        match (self.c, self.addend) {
            (_, Addend::Output { .. }) => None,
            (Cells::F32(c), _) => Some((c, self.ldc)),
            _ => None,
        }
    }

    /// Finishes `sums`, rows of `width` of which `cols` count, and writes them to C from `(i, j)` on. `sums` is overwritten.
    ///
    /// # Safety
    /// C holds the cells, and no other task reads or writes them.
    pub(crate) unsafe fn tile(&self, sums: &mut [f32], width: usize, (i, j): (usize, usize), cols: usize) {
        if let Some(activation) = self.activation {
            elementwise::apply(self.isa, activation, sums);
        }
        for (r, sums) in sums.chunks_exact_mut(width).enumerate() {
            let sums = &mut sums[..cols];
            // SAFETY: promised by the caller.
            unsafe { self.row(sums, i + r, j) };
        }
    }

    /// # Safety
    /// As [`Finish::tile`].
    unsafe fn row(&self, sums: &mut [f32], i: usize, j: usize) {
        let (at, cols) = (i * self.ldc + j, sums.len());
        let add = |sums: &mut [f32], values: &[f32], beta: f32| {
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += beta * value);
        };
        if let Addend::Matrix { values, row_stride, beta } = self.addend {
            add(sums, &values[i * row_stride + j..][..cols], beta);
        }
        let old = match self.addend {
            Addend::Output { beta } => Some(beta),
            _ => None,
        };
        // SAFETY: promised by the caller.
        unsafe {
            match self.c {
                Cells::F32(c) => {
                    let c = c.slice(at, cols);
                    if let Some(beta) = old {
                        add(sums, c, beta);
                    }
                    c.copy_from_slice(sums);
                }
                Cells::F16(c) => {
                    let c = c.slice(at, cols);
                    if let Some(beta) = old {
                        sums.iter_mut().zip(&*c).for_each(|(sum, c)| *sum += beta * c.to_f32());
                    }
                    half::slice::HalfFloatSliceExt::convert_from_f32_slice(c, sums);
                }
                Cells::BF16(c) => {
                    let c = c.slice(at, cols);
                    if let Some(beta) = old {
                        sums.iter_mut().zip(&*c).for_each(|(sum, c)| *sum += beta * c.to_f32());
                    }
                    c.iter_mut().zip(&*sums).for_each(|(c, &sum)| *c = nearest(sum));
                }
            }
        }
    }
}

/// The nearest value, ties to even, as [`bf16::from_f32`] but without a branch, so that it becomes vector code.
fn nearest(x: f32) -> bf16 {
    let bits = x.to_bits();
    let rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    bf16::from_bits(if x.is_nan() { bits >> 16 | 0x40 } else { rounded } as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_that_of_the_type() {
        let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN, f32::MAX, f32::MIN_POSITIVE, 1e-45];
        let ties = (0..0x2_0000u32).map(|low| f32::from_bits(0x3f80_0000 + low));
        for x in special.into_iter().chain(ties) {
            assert_eq!(nearest(x).to_bits(), bf16::from_f32(x).to_bits(), "{x}");
        }
    }
}
