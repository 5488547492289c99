//! The levels against the definition, bit for bit.

use super::*;
use crate::random::{philox, uniform};

/// The definition, one element at a time, with the threshold in 64 bits.
fn defined(key: [u32; 2], stream: u32, rate: f64, x: &[f32]) -> Vec<f32> {
    let (threshold, scale) = ((rate * 4_294_967_296.0) as u64, (1.0 / (1.0 - rate)) as f32);
    let word = |i: usize| philox(u64::from(key[0]) | u64::from(key[1]) << 32, [(i / 4) as u32, 0, stream, 0])[i % 4];
    x.iter().enumerate().map(|(i, x)| if u64::from(word(i)) < threshold { 0.0 } else { x * scale }).collect()
}

#[track_caller]
fn assert_same(got: &[f32], want: &[f32], what: impl std::fmt::Display) {
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(got.to_bits(), want.to_bits(), "element {i}: {got} {want}, {what}");
    }
}

#[test]
fn levels_threads_and_places_agree_bit_for_bit() {
    let lengths = (0..=70).chain([95, 96, 127, 128, 129, 191, 1000, GRAIN - 1, GRAIN, GRAIN + 1, 2 * GRAIN + 77, 3 * GRAIN]);
    let mut source = vec![0.0; 3 * GRAIN + 1];
    uniform(&Pool::new(1), 5, 0, 0, &mut source);
    for isa in Isa::available() {
        let pools = [Pool::with_isa(1, isa), Pool::with_isa(2, isa)];
        for len in lengths.clone() {
            // Not aligned.
            let x = &source[1..][..len];
            let (key, stream, rate) = ([len as u32 ^ 0xdead_beef, 0x8123_4567], u32::MAX - len as u32, 0.05 + len as f64 / 1e6);
            let want = defined(key, stream, rate, x);
            for pool in &pools {
                let mut out = vec![f32::NAN; len];
                dropout(pool, key, stream, rate, x, &mut out);
                assert_same(&out, &want, format_args!("{len} at {isa}"));
                let mut out = [x, &[7.0; 9]].concat();
                let pointer = out.as_mut_ptr();
                // SAFETY: in place on a buffer that is longer.
                unsafe { dropout_raw(pool, key, stream, rate, len, pointer, pointer) };
                assert_same(&out[..len], &want, format_args!("{len} in place at {isa}"));
                assert_eq!(out[len..], [7.0; 9]);
            }
        }
    }
}

/// Tasks begin at later blocks; beyond `2^32` of them the second counter word counts.
#[test]
#[cfg(target_arch = "x86_64")]
fn blocks_carry_into_the_second_word() {
    let mask = Mask { key: [1, 2], stream: 3, threshold: 1 << 31, scale: 2.0 };
    let levels: [(Isa, Apply); 3] = [(Isa::Scalar, scalar::apply), (Isa::Avx2, avx2::apply), (Isa::Avx512, avx512::apply)];
    let x = [1.0; 200];
    for block in [(1 << 32) - 5, 1 << 32, 7 << 40] {
        let mut want = [0.0; 200];
        for (i, want) in want.iter_mut().enumerate() {
            let index = block + i as u64 / 4;
            let word = philox(1 | 2 << 32, [index as u32, (index >> 32) as u32, 3, 0])[i % 4];
            *want = if word < 1 << 31 { 0.0 } else { 2.0 };
        }
        for (isa, apply) in levels.into_iter().filter(|(isa, _)| *isa <= Isa::detect()) {
            let mut out = [f32::NAN; 200];
            // SAFETY: buffers of 200 elements at a level that this CPU has.
            unsafe { apply(&mask, block, 200, x.as_ptr(), out.as_mut_ptr()) };
            assert_same(&out, &want, isa);
        }
    }
}

#[test]
fn extreme_rates_and_numbers() {
    let x: Vec<f32> = [f32::NAN, f32::INFINITY, -1.0, -0.0, 1e-40].into_iter().cycle().take(333).collect();
    for isa in Isa::available() {
        let pool = Pool::with_isa(1, isa);
        let mut out = vec![0.0; x.len()];
        dropout(&pool, [1, 2], 3, 0.0, &x, &mut out);
        assert_same(&out, &x, isa);
        // The largest number below one drops all but the largest word.
        dropout(&pool, [1, 2], 3, 1.0f64.next_down(), &x, &mut out);
        assert_same(&out, &vec![0.0; x.len()], isa);
        dropout(&pool, [1, 2], 3, 0.5, &x, &mut out);
        assert_same(&out, &defined([1, 2], 3, 0.5, &x), isa);
    }
}

#[test]
fn drops_its_share() {
    let x = vec![1.0; 100_000];
    let mut out = vec![0.0; x.len()];
    dropout(&Pool::new(2), [9, 0], 0, 0.1, &x, &mut out);
    let dropped = out.iter().filter(|&&x| x == 0.0).count();
    assert!((9_500..10_500).contains(&dropped), "{dropped}");
    assert!(out.iter().all(|&x| x == 0.0 || x == (1.0 / 0.9) as f32));
}

#[test]
#[should_panic(expected = "rate of dropout")]
fn a_rate_of_one_is_refused() {
    dropout(&Pool::new(1), [0; 2], 0, 1.0, &[], &mut []);
}
