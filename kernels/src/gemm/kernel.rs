//! The inner kernels of a matrix product, one table per instruction set.

use crate::isa::Isa;

/// One register tile: `c = alpha a b + bias + beta d`, where `d` may be `c`.
///
/// `a` is packed `[k][rows]` if `a_stride` is zero, else rows of `k` contiguous values, `a_stride` apart;
/// `b` has `k` rows of `cols` contiguous values, `b_stride` apart.
pub(crate) struct Tile {
    /// 1 to `Kernels::mr`.
    pub(crate) rows: usize,
    /// 1 to `Kernels::nr`.
    pub(crate) cols: usize,
    pub(crate) k: usize,
    pub(crate) a: *const f32,
    pub(crate) a_stride: usize,
    pub(crate) b: *const f32,
    pub(crate) b_stride: usize,
    /// Where rows of `b` are copied to on the way, one after the other; or null. Only for `cols` equal to `Kernels::nr`.
    pub(crate) copy: *mut f32,
    pub(crate) c: *mut f32,
    pub(crate) ldc: usize,
    pub(crate) alpha: f32,
    /// `d` is not read when this is zero.
    pub(crate) beta: f32,
    pub(crate) d: *const f32,
    pub(crate) ldd: usize,
    /// `cols` values, or null.
    pub(crate) bias: *const f32,
}

/// What happens to a product on its way into `c`.
#[derive(Clone, Copy)]
pub(crate) struct Epilogue<'a> {
    pub(crate) alpha: f32,
    pub(crate) beta: f32,
    pub(crate) bias: Option<&'a [f32]>,
    /// What `beta` multiplies, and the distance between its rows; without one, the old value of `c`.
    pub(crate) addend: Option<(&'a [f32], usize)>,
}

impl<'a> Epilogue<'a> {
    /// What the first, or a later, pass over `k` does: later ones only add.
    pub(crate) fn pass(self, first: bool) -> Epilogue<'a> {
        if first { self } else { Epilogue { beta: 1.0, bias: None, addend: None, ..self } }
    }
}

/// Rows of each operand in one call of `Kernels::dots`.
pub(crate) const DOTS: usize = 4;

/// Inner kernels of one instruction set.
///
/// # Safety
/// Every function requires its instruction set, and pointers that are valid for
/// the extents it is given; none requires alignment.
pub(crate) struct Kernels {
    /// Rows of a full tile.
    pub(crate) mr: usize,
    /// Columns of a full tile; divides [`super::pack::GROUP`].
    pub(crate) nr: usize,
    /// Most values of `k` per pass: each pass touches C once per this many multiply-adds.
    pub(crate) kc: usize,
    /// Values of B that a task keeps packed: half of the second-level cache of the CPUs that have these instructions.
    pub(crate) strip: usize,
    /// Computes a tile, of any size up to `mr` by `nr`.
    pub(crate) tile: unsafe fn(&Tile),
    /// `dst[i * dst_stride + r] = src[r * src_stride + i]` for `r < rows <= 16`, `i < len`.
    ///
    /// Values of `dst` between its rows become arbitrary, those after the last do not.
    pub(crate) transpose: unsafe fn(Transpose),
    /// `out[4 r + s] = x[r] . y[s]` over `k` contiguous values.
    pub(crate) dots: unsafe fn(usize, &[*const f32; DOTS], &[*const f32; DOTS], &mut [f32; DOTS * DOTS]),
}

/// Arguments of `Kernels::transpose`.
#[derive(Clone, Copy)]
pub(crate) struct Transpose {
    pub(crate) rows: usize,
    pub(crate) len: usize,
    pub(crate) src: *const f32,
    pub(crate) src_stride: usize,
    pub(crate) dst: *mut f32,
    pub(crate) dst_stride: usize,
}

/// The kernels of `isa`, which a pool has checked to be supported.
pub(crate) fn kernels(isa: Isa) -> &'static Kernels {
    match isa {
        Isa::Scalar => &super::scalar::KERNELS,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => &super::avx2::KERNELS,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Amx => &super::avx512::KERNELS,
        #[cfg(not(target_arch = "x86_64"))]
        _ => &super::scalar::KERNELS,
    }
}
