//! The inner kernels of a matrix product, one table per instruction set.

use super::blocked::Sizes;
#[cfg(target_arch = "x86_64")]
use crate::amx::Tiles;
use crate::isa::Isa;

/// Registers that no kernel needs to take.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) struct Tiles;

/// One register tile: `c = alpha a b + bias + beta d`, where `d` may be `c`.
///
/// Where kernels have a [`Split`], both operands are split for them. Else `a` is packed `[k][rows]` if `a_stride` is zero, or rows of
/// `k` contiguous values, `a_stride` apart; `b` has `k` rows of `cols` contiguous values, `b_stride` apart.
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
    /// What operands become before a tile is computed, if they do not stay floats.
    pub(crate) split: Option<Split>,
    /// `dst[i * dst_stride + r] = src[r * src_stride + i]` for `r < rows <= 16`, `i < len`.
    ///
    /// Values of `dst` between its rows become arbitrary, those after the last do not.
    pub(crate) transpose: unsafe fn(Transpose),
    /// `out[4 r + s] = x[r] . y[s]` over `k` contiguous values.
    pub(crate) dots: unsafe fn(usize, &[*const f32; DOTS], &[*const f32; DOTS], &mut [f32; DOTS * DOTS]),
}

impl Kernels {
    /// Floats that panels of `k` values of each of `cols` columns, whole panels, take the room of.
    pub(crate) fn room(&self, k: usize, cols: usize) -> usize {
        self.split.map_or(cols * k, |split| cols / self.nr * (split.room)(k))
    }
}

/// How operands of tiles are split, see [`crate::split`].
#[derive(Clone, Copy)]
pub(crate) struct Split {
    /// Floats that `k` values of each of `mr` rows, or `nr` columns, take the room of.
    pub(crate) room: fn(usize) -> usize,
    /// Splits rows of `k` contiguous values, given by the first, the distance to the next, and their number and `k`.
    pub(crate) left: unsafe fn(*const f32, usize, usize, usize, *mut f32),
    /// Splits `k` rows of contiguous columns, given by the first, the distance to the next, and the number of columns and `k`.
    pub(crate) right: unsafe fn(*const f32, usize, usize, usize, *mut f32),
    /// What a thread holds while it computes tiles.
    pub(crate) tiles: unsafe fn() -> Tiles,
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

/// The kernels for products of such sizes.
pub(crate) fn kernels_for(isa: Isa, sizes: Sizes) -> &'static Kernels {
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Amx && super::amx::pays(sizes) {
        return &super::amx::KERNELS;
    }
    let _ = sizes;
    kernels(isa)
}

/// The kernels of `isa` that take operands as floats, which a pool has checked to be supported.
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
