//! Parity with scalar code, the inverse, and both layouts.

use super::*;
use crate::isa::Isa;

fn case(layout: Layout, inv_freq: &[f32], head_dim: usize, inverse: bool) -> Rope<'_> {
    Rope { n: 9, heads: 3, head_dim, rotary_dim: 2 * inv_freq.len(), layout, inv_freq, attn_scale: 1.0, inverse, rows: &[] }
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

/// Pairs follow the time, height and width of their token, in sections (Qwen2-VL) or in turn (Qwen3-VL).
#[test]
fn every_pair_turns_by_its_own_row_of_positions() {
    let (n, heads, half) = (9, 3, 20);
    let inv_freq: Vec<f32> = (0..half).map(|i| 10_000f32.powf(-(i as f32) / half as f32)).collect();
    let positions: Vec<i32> = (0..3 * n as i32).map(|i| i * i % 101).collect();
    let mut x = vec![0.0; n * heads * 48];
    crate::random::normal(&Pool::new(1), 1, 0, 0, &mut x);
    let in_sections: Vec<u8> = (0..half).map(|i| [0, 1, 2][(i / 7).min(2)]).collect();
    let in_turn: Vec<u8> = (0..half).map(|i| if i < 15 { i as u8 % 3 } else { 0 }).collect();
    for rows in [in_sections, in_turn] {
        for layout in [Layout::Halves, Layout::Interleaved] {
            let rotation = Rope { rows: &rows, ..case(layout, &inv_freq, 48, false) };
            // Where a pair lies, what is rotated does not depend on the other pairs.
            let mut want = vec![0.0; x.len()];
            let scalar = Pool::with_isa(1, Isa::Scalar);
            for row in 0..3 {
                let mut turned = vec![0.0; x.len()];
                rope(&scalar, Rope { rows: &[], ..rotation }, &positions[row * n..][..n], &x, &mut turned);
                for (i, (want, turned)) in want.iter_mut().zip(turned).enumerate() {
                    let at = i % 48;
                    let pair = if layout == Layout::Halves { at % half } else { at / 2 };
                    if at >= 2 * half || usize::from(rows[pair]) == row {
                        *want = turned;
                    }
                }
            }
            for isa in Isa::available() {
                let mut got = vec![0.0; x.len()];
                rope(&Pool::with_isa(2, isa), rotation, &positions, &x, &mut got);
                assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 2e-6), "{layout:?} at {isa}");
            }
        }
    }
}
