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
            for (bias, beta) in [(None, 0.0), (Some(&bias[..]), 1.0)] {
                let what = format!("{format} {m}x{k}x{n} r{r} beta {beta} at {isa}");
                let run = |threads: usize| {
                    let pool = Pool::with_isa(threads, isa);
                    let (mut y, mut dx) = (draw(m * n, 8), draw(m * k, 9));
                    low_rank_linear(&pool, m, 1.5, &x, &w, &forward, bias, &mut y, beta);
                    low_rank_linear_dx(&pool, m, 1.5, &dy, &w, &backward, &mut dx, beta);
                    (y, dx)
                };
                let (y, dx) = run(1);
                assert_eq!((&y, &dx), (&run(3).0, &run(3).1), "{what}");
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
