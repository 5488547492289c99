//! Linear layers on weights in any format: forward, and the gradient of the input.
//!
//! A weight is `[n, k]` (output by input features). Both directions are the blocked
//! product of [`crate::gemm`] with a packer that decodes the weight panel by panel,
//! once per panel; the whole matrix never exists in `f32`. Batches of at most
//! eight rows (decoding) take the dot products of each encoded row, or panel, as it
//! streams past, which is bound by the bandwidth of reading the weight.
//!
//! A weight lies in rows, as in its file, or was repacked once into [`crate::panels`]. Values are bitwise the same, so
//! are products of more than eight rows; panels are decoded faster, and the same copy serves whole numbers.
//!
//! Arithmetic is that of the decoded weight in `f32`: activations are not
//! quantized (they are in [`int8`], which is asked for by name). Error and determinism are those of [`crate::gemm`]; the algorithm
//! depends on `m`, so one row alone may differ from the same row in a larger batch
//! by rounding.

use crate::elementwise::{self, Unary};
use crate::format::{Format, Layout, Weight};
use crate::gemm::blocked::{Out, Sizes, blocked, run};
use crate::gemm::kernel::Epilogue;
use crate::gemm::pack::Panels;
use crate::gemm::{Addend, Factor, Fused, MatRef, Output, gemm, gemm_fused};
use crate::isa::Isa;
use crate::panels::{self, Decoded, PANEL};
use crate::pool::{Disjoint, Pool};

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod grouped;
pub mod int8;
mod scalar;
#[cfg(test)]
mod tests;

/// Most rows of activations for which weights are streamed row by row.
const STREAMED: usize = panels::FEW;

/// What a layer does with its product: `y = activation(alpha x Wᵀ + bias) + addend`.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    /// Factor of the product.
    pub alpha: f32,
    /// One value for each row of the weight.
    pub bias: Option<&'a [f32]>,
    /// What is applied to each element of the product and its bias.
    pub activation: Option<Unary>,
    /// What is added in the end.
    pub addend: Addend<'a>,
}

/// `y = alpha x Wᵀ + bias + beta y`: `x` is `[m, w.cols]`, `y` is `[m, w.rows]`.
///
/// `y` is overwritten, not read, when `beta` is zero.
///
/// # Panics
/// When a length does not match, or the weight has no columns.
#[track_caller]
#[expect(clippy::too_many_arguments, reason = "the signature of BLAS plus the bias")]
pub fn linear(pool: &Pool, m: usize, alpha: f32, x: &[f32], w: &Weight<'_>, bias: Option<&[f32]>, y: &mut [f32], beta: f32) {
    let addend = if beta == 0.0 { Addend::None } else { Addend::Output { beta } };
    linear_fused(pool, m, x, w, &Layer { alpha, bias, activation: None, addend }, y);
}

/// [`linear`] with all that a layer does, in one pass over `y`.
///
/// The error of an activation is that of [`crate::elementwise`].
///
/// # Panics
/// When a length does not match, or the weight has no columns.
#[track_caller]
pub fn linear_fused(pool: &Pool, m: usize, x: &[f32], w: &Weight<'_>, layer: &Layer<'_>, y: &mut [f32]) {
    let &Layer { alpha, bias, activation, addend } = layer;
    let sizes = Sizes { m, n: w.rows, k: w.cols };
    check(sizes, x, w, y);
    assert!(bias.is_none_or(|bias| bias.len() == w.rows), "bias does not match the weight's rows");
    if y.is_empty() {
        return;
    }
    let a = MatRef::new(x, w.cols);
    if m <= STREAMED && is_streamed(w) {
        return stream(pool, sizes, x, w, y, layer);
    }
    let beta = match addend {
        Addend::None => Some(0.0),
        Addend::Output { beta } => Some(beta),
        Addend::Matrix { .. } => None,
    };
    // The plain product knows what to do with few columns.
    if let (Some(data), Some(beta), None, None) = (w.floats(), beta, bias, activation) {
        return gemm(pool, m, w.rows, w.cols, alpha, a, MatRef::new(data, w.cols).transposed(), y, w.rows, beta);
    }
    let product = Fused { m, a: a.into(), b: Factor::Weight(*w), alpha, bias, activation, addend };
    gemm_fused(pool, &product, Output::F32(y), w.rows);
}

/// `dx = alpha dy W + beta dx`: `dy` is `[m, w.rows]`, `dx` is `[m, w.cols]`.
///
/// `dx` is overwritten, not read, when `beta` is zero.
///
/// # Panics
/// When a length does not match, or the weight has no rows.
#[track_caller]
pub fn linear_dx(pool: &Pool, m: usize, alpha: f32, dy: &[f32], w: &Weight<'_>, dx: &mut [f32], beta: f32) {
    let sizes = Sizes { m, n: w.cols, k: w.rows };
    check(sizes, dy, w, dx);
    if dx.is_empty() {
        return;
    }
    let dy = MatRef::new(dy, w.rows);
    if let Some(data) = w.floats() {
        let b = MatRef::new(data, w.cols);
        return gemm(pool, m, w.cols, w.rows, alpha, dy, b, dx, w.cols, beta);
    }
    let panels = Panels::straight(pool.isa(), w);
    let epilogue = Epilogue { alpha, beta, bias: None, addend: None };
    blocked(pool, sizes, dy.into(), panels, Out::Plain(Disjoint::new(dx), w.cols), epilogue, None);
}

#[track_caller]
pub(crate) fn check(sizes: Sizes, input: &[f32], w: &Weight<'_>, output: &[f32]) {
    w.check();
    assert!(sizes.k > 0, "a linear layer sums over at least one feature");
    assert_eq!(input.len(), sizes.m * sizes.k, "input does not match the batch and the weight");
    assert_eq!(output.len(), sizes.m * sizes.n, "output does not match the batch and the weight");
}

/// Encoded weight rows whose dot products with the activations are taken together.
const ROWS: usize = 4;

/// Dot products of [`ROWS`] encoded weight rows with up to [`STREAMED`] rows of activations.
struct Rows {
    format: Format,
    /// Rows of `k` encoded values at any alignment; some may be the same.
    bytes: [*const u8; ROWS],
    k: usize,
    /// `[m, k]`, every 32 of them in the order of [`element_at`].
    x: *const f32,
    m: usize,
}

/// Results by row of activations, then by weight row.
type Dots = [[f32; ROWS]; STREAMED];

/// # Safety
/// The pointers are valid for the extents; the instruction set is supported.
type RowDots = unsafe fn(&Rows, &mut Dots);

fn row_dots(isa: Isa) -> RowDots {
    match isa {
        Isa::Scalar => scalar::row_dots,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => avx2::row_dots,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Amx => avx512::row_dots,
        #[cfg(not(target_arch = "x86_64"))]
        _ => scalar::row_dots,
    }
}

/// Whether few rows of activations are multiplied with the weight as it is decoded. Blocks that have panels are not streamed in rows:
/// whoever multiplies with them often has repacked them.
fn is_streamed(w: &Weight<'_>) -> bool {
    w.layout == Layout::Panels || matches!(w.format, Format::F32 | Format::F16 | Format::BF16 | Format::Nf4)
}

fn stream(pool: &Pool, sizes: Sizes, x: &[f32], w: &Weight<'_>, y: &mut [f32], layer: &Layer<'_>) {
    let Sizes { m, n, .. } = sizes;
    layer.addend.check(m, n);
    let out = Streamed { isa: pool.isa(), n, layer, y: Disjoint::new(y) };
    match Decoded::new(pool.isa(), w) {
        Some(panels) => stream_panels(pool, sizes, x, &panels, w.data.len(), &out),
        None => stream_rows(pool, sizes, x, w, &out),
    }
}

/// Where dot products go, and what happens to them on the way.
struct Streamed<'a> {
    isa: Isa,
    n: usize,
    layer: &'a Layer<'a>,
    y: Disjoint<'a, f32>,
}

impl Streamed<'_> {
    /// Writes the dot products of row `i` of the activations with the weight's rows from `first` on.
    ///
    /// # Safety
    /// Nobody else writes these elements at the same time.
    unsafe fn write(&self, i: usize, first: usize, sums: &mut [f32]) {
        let &Layer { alpha, bias, activation, addend } = self.layer;
        for (j, sum) in sums.iter_mut().enumerate() {
            *sum = alpha * *sum + bias.map_or(0.0, |bias| bias[first + j]);
        }
        if let Some(activation) = activation {
            elementwise::apply(self.isa, activation, sums);
        }
        // SAFETY: by the caller's promise.
        let y = unsafe { self.y.slice(i * self.n + first, sums.len()) };
        match addend {
            Addend::None => y.copy_from_slice(sums),
            Addend::Output { beta } => y.iter_mut().zip(sums).for_each(|(y, sum)| *y = *sum + beta * *y),
            Addend::Matrix { values, row_stride, beta } => {
                let values = &values[i * row_stride + first..];
                y.iter_mut().zip(sums).zip(values).for_each(|((y, sum), value)| *y = *sum + beta * value);
            }
        }
    }
}

fn stream_panels(pool: &Pool, sizes: Sizes, x: &[f32], w: &Decoded<'_>, bytes: usize, out: &Streamed<'_>) {
    let Sizes { m, n, .. } = sizes;
    let panels = n.div_ceil(PANEL);
    let groups = panels.div_ceil(panels::streams(pool, m, panels));
    panels::share_out(pool, sizes.is_small(), groups, bytes, &|group| {
        let mut sums = [[[0f32; PANEL]; STREAMED]; panels::STREAMS];
        let chosen = (group..panels).step_by(groups);
        w.dots(group, groups, m, x, &mut sums[..chosen.len()]);
        for (panel, sums) in chosen.zip(&mut sums) {
            let first = panel * PANEL;
            for (i, sums) in sums.iter_mut().enumerate().take(m) {
                // SAFETY: a panel is in one group.
                unsafe { out.write(i, first, &mut sums[..PANEL.min(n - first)]) };
            }
        }
    });
}

fn stream_rows(pool: &Pool, sizes: Sizes, x: &[f32], w: &Weight<'_>, out: &Streamed<'_>) {
    // Weight rows per task: some ten microseconds of reading.
    const TASK: usize = 32;
    let Sizes { m, n, k } = sizes;
    let dots = row_dots(pool.isa());
    run(pool, sizes.is_small(), n.div_ceil(TASK), &|task| {
        let end = n.min((task + 1) * TASK);
        let mut sums = [[0f32; TASK]; STREAMED];
        for first in (task * TASK..end).step_by(ROWS) {
            // Past the edge the last row is repeated and its results dropped.
            let bytes = std::array::from_fn(|r| w.row((first + r).min(end - 1)).as_ptr());
            let rows = Rows { format: w.format, bytes, k, x: x.as_ptr(), m };
            let mut out = [[0f32; ROWS]; STREAMED];
            // SAFETY: lengths were checked; the level is the pool's.
            unsafe { dots(&rows, &mut out) };
            for (sums, out) in sums.iter_mut().zip(out).take(m) {
                sums[first - task * TASK..][..ROWS].copy_from_slice(&out);
            }
        }
        let first = task * TASK;
        for (i, sums) in sums.iter_mut().enumerate().take(m) {
            // SAFETY: this task alone has these columns.
            unsafe { out.write(i, first, &mut sums[..end - first]) };
        }
    });
}
