//! Parity with `f64` definitions, threads, NaN, and segments.

use super::*;

fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut x = vec![0.0; len];
    crate::random::normal(&Pool::new(1), seed, 0, 0, &mut x);
    x
}

fn exact(op: Reduce, x: &[f32]) -> f64 {
    let wide = || x.iter().map(|&x| f64::from(x));
    match op {
        Reduce::Sum => wide().sum(),
        Reduce::Mean => wide().sum::<f64>() / x.len() as f64,
        Reduce::Prod => wide().product(),
        Reduce::Max => wide().fold(f64::NEG_INFINITY, f64::max),
        Reduce::Min => wide().fold(f64::INFINITY, f64::min),
        Reduce::LogSumExp => wide().map(f64::exp).sum::<f64>().ln(),
    }
}

fn close(got: f32, want: f64) -> bool {
    got == want as f32 || (f64::from(got) - want).abs() <= 2e-6 * want.abs().max(1e-3)
}

#[test]
fn every_axis_and_level() {
    for (outer, len, inner) in [(1, 1, 1), (3, 70, 1), (2, 33, 5), (1, 130, 200), (1, 150_001, 1), (2, 0, 3)] {
        let x = values(outer * len * inner, 1);
        for op in Reduce::ALL {
            for isa in Isa::available() {
                let mut got = vec![0.0; outer * inner];
                reduce(&Pool::with_isa(2, isa), op, outer, len, inner, &x, &mut got);
                let mut again = vec![0.0; outer * inner];
                reduce(&Pool::with_isa(1, isa), op, outer, len, inner, &x, &mut again);
                for (index, &got) in got.iter().enumerate() {
                    assert_eq!(got.to_bits(), again[index].to_bits());
                    let (o, i) = (index / inner, index % inner);
                    let line: Vec<f32> = (0..len).map(|l| x[(o * len + l) * inner + i]).collect();
                    let want = exact(op, &line);
                    assert!(close(got, want) || want.is_nan() && got.is_nan(), "{op:?} {got} {want} at {isa}");
                }
            }
        }
    }
}

#[test]
fn odd_numbers() {
    for isa in Isa::available() {
        let pool = Pool::with_isa(1, isa);
        let value = |op, x: &[f32]| {
            let mut out = [0.0];
            reduce(&pool, op, 1, x.len(), 1, x, &mut out);
            out[0]
        };
        let mut x = vec![1.0; 100];
        x[77] = f32::NAN;
        assert!(Reduce::ALL.iter().all(|&op| value(op, &x).is_nan()));
        assert_eq!(value(Reduce::LogSumExp, &[f32::NEG_INFINITY; 3]), f32::NEG_INFINITY);
        assert_eq!(value(Reduce::LogSumExp, &[0.0, f32::INFINITY]), f32::INFINITY);
        assert!((value(Reduce::LogSumExp, &[1000.0, 1000.0]) - 1000.6931).abs() < 1e-3);
        let mut y = [0.0; 3];
        softmax(&pool, 1, 3, &[f32::NEG_INFINITY, 900.0, 900.0], &mut y);
        assert_eq!(y, [0.0, 0.5, 0.5]);
    }
}

#[test]
fn softmax_and_its_gradient() {
    for (rows, cols) in [(3, 1), (5, 17), (40, 1000), (2, 5001)] {
        let (x, dy) = (values(rows * cols, 1), values(rows * cols, 2));
        let both = |isa, threads| {
            let pool = Pool::with_isa(threads, isa);
            let (mut y, mut dx) = (vec![0.0; rows * cols], vec![0.0; rows * cols]);
            softmax(&pool, rows, cols, &x, &mut y);
            softmax_dx(&pool, rows, cols, &y, &dy, &mut dx);
            [y, dx].concat()
        };
        let want = both(Isa::Scalar, 1);
        for isa in Isa::available() {
            let got = both(isa, 1);
            assert_eq!(got, both(isa, 2));
            for (got, want) in got.iter().zip(&want) {
                assert!((got - want).abs() <= 2e-6 * want.abs().max(1e-2), "{got} {want} at {isa}");
            }
        }
    }
}

#[test]
fn segments_in_any_order() {
    for (n, d, count) in [(50, 3, 6), (50, 130, 6), (900, 64, 6), (0, 5, 6)] {
        let mut x = values(n * d, 4);
        x.iter_mut().step_by(997).skip(1).for_each(|x| *x = f32::NAN);
        // Segment 5 stays empty, some rows are skipped.
        let segments: Vec<i32> = (0..n as i32).map(|i| i * 7 % 6 - 1).collect();
        for (op, isa) in Reduce::ALL.into_iter().flat_map(|op| Isa::available().map(move |isa| (op, isa))) {
            let reduced = |threads| {
                let mut out = vec![0.0; count * d];
                segment_reduce(&Pool::with_isa(threads, isa), op, n, d, &x, &segments, count, &mut out);
                out
            };
            let out = reduced(2);
            assert!(out.iter().zip(reduced(1)).all(|(a, b)| a.to_bits() == b.to_bits()));
            for segment in 0..count {
                for c in 0..d {
                    let line: Vec<f32> = (0..n).filter(|&i| segments[i] == segment as i32).map(|i| x[i * d + c]).collect();
                    let got = out[segment * d + c];
                    let want = if op == Reduce::Mean && line.is_empty() { 0.0 } else { exact(op, &line) };
                    let same = if line.iter().any(|x| x.is_nan()) { got.is_nan() } else { close(got, want) };
                    assert!(same, "{op:?} {segment} at {isa}: {got} {want}");
                }
            }
        }
    }
}

/// Named after the symptom that a maximum of numbers alone could bring: a row with a NaN must be NaN throughout.
#[test]
fn softmax_of_odd_rows() {
    for isa in Isa::available() {
        let pool = Pool::with_isa(1, isa);
        for cols in [1, 3, 16, 100] {
            for odd in [f32::NAN, f32::INFINITY] {
                for at in [0, cols / 2, cols - 1] {
                    let (mut x, mut y) = (vec![1.0; cols], vec![0.0; cols]);
                    x[at] = odd;
                    softmax(&pool, 1, cols, &x, &mut y);
                    assert!(y.iter().all(|y| y.is_nan()), "{odd} at {at} of {cols} at {isa}");
                }
            }
        }
    }
}
