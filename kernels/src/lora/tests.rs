//! Against the two products, each taken alone.

use super::*;
use crate::format::Format;
use crate::isa::Isa;

fn draw(len: usize, seed: u64) -> Vec<f32> {
    let mut x = vec![0.0; len];
    crate::random::normal(&Pool::new(1), seed, 0, 0, &mut x);
    x
}

fn encoded(format: Format, values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; values.len() / format.block_len() * format.block_bytes()];
    crate::quant::quantize(format, values, &mut bytes);
    bytes
}

fn close(got: &[f32], want: &[f32], what: &str) {
    for (got, want) in got.iter().zip(want) {
        assert!((got - want).abs() <= 2e-4 * want.abs().max(1.0), "{what}: {got} is not {want}");
    }
}

#[test]
fn one_pass_is_two_products() {
    // Sizes around tiles, panels, passes and the border to two products; ranks around the packed step.
    let shapes = [(3, 64, 40, 8), (33, 64, 17, 1), (100, 448, 96, 8), (97, 64, 130, 16), (61, 32, 50, 40)];
    for (format, (m, k, n, r)) in [Format::F32, Format::Q8_0].into_iter().flat_map(|f| shapes.map(|s| (f, s))) {
        // Stored by rows of output features, whose length is a multiple of the blocks.
        let (x, h, dy) = (draw(m * k, 1), draw(m * r, 2), draw(m * n, 3));
        let (w, b, a) =
            (encoded(format, &draw(n * k, 4)), encoded(Format::F32, &draw(n * r, 5)), encoded(Format::F32, &draw(r * k, 6)));
        let w = Weight::new(format, n, k, &w);
        let forward = LowRank { factor: 0.5, h: &h, v: Weight::new(Format::F32, n, r, &b) };
        let backward = LowRank { factor: 2.0, h: &h, v: Weight::new(Format::F32, r, k, &a) };
        let bias = draw(n, 7);
        for isa in Isa::available() {
            for (bias, addend) in [(None, 0), (Some(&bias[..]), 1), (None, 2)] {
                let what = format!("{format} {m}x{k}x{n} r{r} addend {addend} at {isa}");
                let beta = f32::from(u8::from(addend > 0));
                // What an addend elsewhere holds is what the output holds in the products that it is held to.
                let elsewhere = [draw(m * n, 8), draw(m * k, 9)];
                let add = |values, row_stride| match addend {
                    0 => Addend::None,
                    1 => Addend::Output { beta },
                    _ => Addend::Matrix { values, row_stride, beta },
                };
                let run = |threads: usize| {
                    let pool = Pool::with_isa(threads, isa);
                    let mut out = if addend == 2 { [m * n, m * k].map(|len| vec![f32::NAN; len]) } else { elsewhere.clone() };
                    let [y, dx] = &mut out;
                    let layer = linear::Layer { alpha: 1.5, bias, activation: None, addend: add(&elsewhere[0], n) };
                    low_rank_linear(&pool, m, &x, &w, &forward, &layer, y);
                    low_rank_linear_dx(&pool, m, 1.5, &dy, &w, &backward, add(&elsewhere[1], k), dx);
                    out
                };
                let [y, dx] = run(1);
                assert_eq!([&y, &dx], run(3).each_ref(), "{what}");
                let pool = Pool::with_isa(1, isa);
                let (mut y_want, mut dx_want) = (draw(m * n, 8), draw(m * k, 9));
                linear::linear(&pool, m, 1.5, &x, &w, bias, &mut y_want, beta);
                linear::linear(&pool, m, 0.5, &h, &forward.v, None, &mut y_want, 1.0);
                linear::linear_dx(&pool, m, 1.5, &dy, &w, &mut dx_want, beta);
                linear::linear_dx(&pool, m, 2.0, &h, &backward.v, &mut dx_want, 1.0);
                close(&y, &y_want, &what);
                close(&dx, &dx_want, &what);
            }
        }
    }
}

/// Against both products, then the function of each sum, then the addend; one product may have been computed before.
#[test]
fn an_activation_and_an_addend_follow_both_products() {
    // Few rows, few columns, one pass over `k`, several of them.
    let shapes = [(3, 64, 40, 8), (40, 64, 9, 8), (33, 64, 17, 1), (97, 64, 130, 16), (40, 2500, 70, 40)];
    for (format, (m, k, n, r)) in [Format::F32, Format::Q8_0].into_iter().flat_map(|f| shapes.map(|s| (f, s))) {
        let k = k / format.block_len() * format.block_len();
        let (x, h, bias, other) = (draw(m * k, 1), draw(m * r, 2), draw(n, 3), draw(m * n, 4));
        let scaled = |values: Vec<f32>, by: f32| values.into_iter().map(|x| x * by).collect::<Vec<_>>();
        let (w, b) = (encoded(format, &scaled(draw(n * k, 5), 2.0 / (k as f32).sqrt())), encoded(Format::F32, &draw(n * r, 6)));
        let w = Weight::new(format, n, k, &w);
        let low = LowRank { factor: 0.5, h: &h, v: Weight::new(Format::F32, n, r, &b) };
        for isa in Isa::available() {
            let pools = [1, 3].map(|threads| Pool::with_isa(threads, isa));
            let mut base = vec![0.0; m * n];
            linear::linear(&pools[0], m, 1.5, &x, &w, Some(&bias), &mut base, 0.0);
            let mut sums = base.clone();
            linear::linear(&pools[0], m, low.factor, &h, &low.v, None, &mut sums, 1.0);
            for (activation, addend) in
                [Unary::Relu, Unary::Silu, Unary::GeluTanh].into_iter().flat_map(|f| [(f, 0), (f, 1), (f, 2)])
            {
                let what = format!("{format} {m}x{k}x{n} r{r} {activation:?} addend {addend} at {isa}");
                let mut want = sums.clone();
                crate::elementwise::apply(isa, activation, &mut want);
                if addend > 0 {
                    want.iter_mut().zip(&other).for_each(|(y, x)| *y += 0.75 * x);
                }
                let add = match addend {
                    0 => Addend::None,
                    1 => Addend::Output { beta: 0.75 },
                    _ => Addend::Matrix { values: &other, row_stride: n, beta: 0.75 },
                };
                let runs = pools.each_ref().map(|pool| {
                    let mut y = if addend == 1 { other.clone() } else { vec![f32::NAN; m * n] };
                    let layer = linear::Layer { alpha: 1.5, bias: Some(&bias), activation: Some(activation), addend: add };
                    low_rank_linear(pool, m, &x, &w, &low, &layer, &mut y);
                    y
                });
                assert_eq!(runs[0], runs[1], "{what}");
                close(&runs[0], &want, &what);
                if addend == 1 {
                    continue;
                }
                let runs = pools.each_ref().map(|pool| {
                    let mut y = base.clone();
                    low_rank_add(pool, m, &low, Some(activation), add, &mut y);
                    y
                });
                assert_eq!(runs[0], runs[1], "{what}, added");
                close(&runs[0], &want, &format!("{what}, added"));
            }
        }
    }
}

#[test]
#[should_panic(expected = "addend is shorter")]
fn a_short_addend_is_refused() {
    let (x, w, v) = (vec![0.0; 20 * 4], vec![0; 4 * 20 * 4], vec![0; 4 * 20 * 2]);
    let low = LowRank { factor: 1.0, h: &[0.0; 40], v: Weight::new(Format::F32, 20, 2, &v) };
    let addend = Addend::Matrix { values: &x, row_stride: 20, beta: 1.0 };
    let layer = linear::Layer { alpha: 1.0, bias: None, activation: Some(Unary::Relu), addend };
    low_rank_linear(&Pool::new(1), 20, &x, &Weight::new(Format::F32, 20, 4, &w), &low, &layer, &mut [0.0; 400]);
}

/// A layer with its adapter: `y = alpha x Wᵀ + factor (x Aᵀ) Bᵀ`.
struct Layer {
    sizes: [usize; 4],
    x: Vec<f32>,
    w: Vec<f32>,
    a: Vec<f32>,
    b: Vec<f32>,
    dy: Vec<f32>,
}

const ALPHA: f32 = 1.5;
const FACTOR: f32 = 0.75;

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// `a [m, k] b [n, k]ᵀ`.
fn product([m, k, n]: [usize; 3], a: &[f64], b: &[f64]) -> Vec<f64> {
    let dot = |i: usize, j: usize| (0..k).map(|p| a[i * k + p] * b[j * k + p]).sum();
    (0..m * n).map(|at| dot(at / n, at % n)).collect()
}

impl Layer {
    fn new([m, k, n, r]: [usize; 4]) -> Layer {
        let (x, w, a, b) = (draw(m * k, 1), draw(n * k, 2), draw(r * k, 3), draw(n * r, 4));
        Layer { sizes: [m, k, n, r], x, w, a, b, dy: draw(m * n, 5) }
    }

    /// `y` in `f64`.
    fn outputs(&self, x: &[f64]) -> Vec<f64> {
        let [m, k, n, r] = self.sizes;
        let h = product([m, k, r], x, &wide(&self.a));
        let y = product([m, k, n], x, &wide(&self.w)).into_iter().zip(product([m, r, n], &h, &wide(&self.b)));
        y.map(|(y, low)| f64::from(ALPHA) * y + f64::from(FACTOR) * low).collect()
    }

    /// `y` and `dx` of the kernels, from operands that begin `shift` floats after where they are allocated.
    fn run(&self, pool: &Pool, shift: usize) -> [Vec<f32>; 2] {
        let [m, k, n, r] = self.sizes;
        let later = |values: &[f32]| [vec![0.0; shift], values.to_vec()].concat();
        let (x, dy) = (later(&self.x), later(&self.dy));
        let bytes = |values: &[f32]| encoded(Format::F32, &later(values));
        let (w, a, b) = (bytes(&self.w), bytes(&self.a), bytes(&self.b));
        let w = Weight::new(Format::F32, n, k, &w[4 * shift..]);
        let a = Weight::new(Format::F32, r, k, &a[4 * shift..]);
        let b = Weight::new(Format::F32, n, r, &b[4 * shift..]);
        let (mut h, mut dh) = (vec![0.0; shift + m * r], vec![0.0; shift + m * r]);
        linear::linear(pool, m, 1.0, &x[shift..], &a, None, &mut h[shift..], 0.0);
        linear::linear_dx(pool, m, 1.0, &dy[shift..], &b, &mut dh[shift..], 0.0);
        // What an output held before does not matter.
        let (mut y, mut dx) = (vec![f32::NAN; shift + m * n], vec![f32::NAN; shift + m * k]);
        let low = LowRank { factor: FACTOR, h: &h[shift..], v: b };
        let layer = linear::Layer { alpha: ALPHA, bias: None, activation: None, addend: Addend::None };
        low_rank_linear(pool, m, &x[shift..], &w, &low, &layer, &mut y[shift..]);
        let low = LowRank { factor: FACTOR, h: &dh[shift..], v: a };
        low_rank_linear_dx(pool, m, ALPHA, &dy[shift..], &w, &low, Addend::None, &mut dx[shift..]);
        [y[shift..].to_vec(), dx[shift..].to_vec()]
    }
}

#[test]
fn outputs_and_gradients_match_finite_differences() {
    for sizes in [[17, 33, 20, 3], [30, 20, 70, 8], [18, 50, 33, 17]] {
        let layer = Layer::new(sizes);
        let [m, k, n, _] = sizes;
        let (x, dy) = (wide(&layer.x), wide(&layer.dy));
        let want = layer.outputs(&x);
        for isa in Isa::available() {
            let [y, dx] = layer.run(&Pool::with_isa(2, isa), 0);
            for (y, want) in y.iter().zip(&want) {
                assert!((f64::from(*y) - want).abs() < 2e-4, "{y} {want} {sizes:?} {isa}");
            }
            // The outputs are linear in `x`: a step of one is as good as a small one.
            for column in 0..k {
                let mut moved = x.clone();
                (0..m).for_each(|row| moved[row * k + column] += 1.0);
                let slopes = layer.outputs(&moved);
                for row in 0..m {
                    let want: f64 = (row * n..(row + 1) * n).map(|at| dy[at] * (slopes[at] - want[at])).sum();
                    let got = f64::from(dx[row * k + column]);
                    assert!((got - want).abs() < 5e-4, "{got} {want} {sizes:?} {isa}");
                }
            }
        }
    }
}

#[test]
fn any_alignment_gives_the_same_bits() {
    let layer = Layer::new([45, 70, 37, 5]);
    for isa in Isa::available() {
        let pool = Pool::with_isa(2, isa);
        assert_eq!(layer.run(&pool, 0), layer.run(&pool, 1), "{isa}");
    }
}

#[test]
fn zeros_give_zeros_and_what_is_not_finite_stays_in_its_row() {
    for isa in Isa::available() {
        let pool = Pool::with_isa(2, isa);
        let mut layer = Layer::new([40, 64, 50, 8]);
        let [m, k, n, _] = layer.sizes;
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            (layer.x[7 * k + 3], layer.dy[9 * n + 5]) = (value, value);
            let [y, dx] = layer.run(&pool, 0);
            let finite = |x: &[f32]| x.iter().filter(|x| x.is_finite()).count();
            assert!((0..m).all(|row| finite(&y[row * n..][..n]) == if row == 7 { 0 } else { n }), "{value} {isa}");
            assert!((0..m).all(|row| finite(&dx[row * k..][..k]) == if row == 9 { 0 } else { k }), "{value} {isa}");
        }
        (layer.x, layer.dy) = (vec![0.0; m * k], vec![0.0; m * n]);
        assert!(layer.run(&pool, 0).concat().iter().all(|&value| value == 0.0), "{isa}");
    }
}
