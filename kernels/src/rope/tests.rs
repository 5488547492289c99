//! Parity with scalar code, the inverse, and both layouts.

use super::*;

fn case(layout: Layout, inv_freq: &[f32], head_dim: usize, inverse: bool) -> Rope<'_> {
    Rope { n: 9, heads: 3, head_dim, rotary_dim: 2 * inv_freq.len(), layout, inv_freq, attn_scale: 1.0, inverse }
}

#[test]
fn levels_agree_and_the_inverse_undoes() {
    let positions = [0, 1, 2, 3, 77, 1000, 8191, 131_071, 2_000_000];
    for (head_dim, half) in [(8, 4), (64, 32), (80, 20), (96, 48), (12, 3), (4, 0)] {
        let inv_freq: Vec<f32> = (0..half).map(|i| 10_000f32.powf(-(i as f32) / half as f32)).collect();
        for layout in [Layout::Halves, Layout::Interleaved] {
            let rotation = case(layout, &inv_freq, head_dim, false);
            let len = 27 * head_dim;
            let mut x = vec![0.0; len];
            crate::random::normal(&Pool::new(1), 1, 0, 0, &mut x);
            let mut want = vec![0.0; len];
            rope(&Pool::with_isa(1, Isa::Scalar), rotation, &positions, &x, &mut want);
            for isa in Isa::available() {
                let pool = Pool::with_isa(2, isa);
                let mut got = x.clone();
                let pointer = got.as_mut_ptr();
                // SAFETY: in place on a buffer of the right length.
                unsafe { rope_raw(&pool, rotation, &positions, pointer, pointer) };
                for (got, want) in got.iter().zip(&want) {
                    assert!((got - want).abs() < 2e-6, "{got} {want} at {isa}");
                }
                let mut back = vec![0.0; len];
                rope(&pool, case(layout, &inv_freq, head_dim, true), &positions, &got, &mut back);
                assert!(back.iter().zip(&x).all(|(a, b)| (a - b).abs() < 4e-6));
            }
        }
    }
}

#[test]
fn one_pair_turns_by_its_angle() {
    let pool = Pool::new(1);
    let rotation = Rope { n: 1, heads: 1, attn_scale: 2.0, ..case(Layout::Halves, &[0.5], 3, false) };
    let mut out = [0.0; 3];
    rope(&pool, rotation, &[3], &[1.0, 0.0, 9.0], &mut out);
    assert!((out[0] - 2.0 * 1.5f32.cos()).abs() < 1e-6 && (out[1] - 2.0 * 1.5f32.sin()).abs() < 1e-6);
    assert_eq!(out[2], 9.0);
}
