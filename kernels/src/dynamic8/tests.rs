//! Maps, nearest entries against a search of all, and levels against each other.

use super::*;
use crate::isa::Isa;

/// Random numbers with ends, middles between entries, infinities, NaN and numbers too small for a scale.
fn numbers(len: usize, seed: u64, scale: f32) -> Vec<f32> {
    let mut x = vec![0.0; len];
    crate::random::normal(&Pool::new(1), seed, 0, 0, &mut x);
    x.iter_mut().enumerate().for_each(|(i, x)| *x *= scale * [1.0, 0.1, 1e-3, 1e-6][i % 4]);
    x
}

/// An array of `tests/golden/dynamic8.txt`, which `make_dynamic8.py` beside it writes.
pub(crate) fn golden(name: &str) -> Vec<u32> {
    let lines = include_str!("../../../tests/golden/dynamic8.txt").lines();
    let mut words = lines.map(str::split_whitespace).find_map(|mut words| (words.next() == Some(name)).then_some(words));
    words.as_mut().expect("a golden array").map(|word| u32::from_str_radix(word, 16).unwrap()).collect()
}

pub(crate) fn golden_floats(name: &str) -> Vec<f32> {
    golden(name).into_iter().map(f32::from_bits).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| if x.is_nan() { 0x7fc0_0000 } else { x.to_bits() }).collect()
}

#[test]
fn maps_codes_and_scales_are_those_of_bitsandbytes() {
    for (map, name) in [(Map::Signed, "signed"), (Map::Unsigned, "unsigned")] {
        assert_eq!(bits(map.values()), golden(name));
        let x = golden_floats(&format!("{name}.x"));
        for isa in Isa::available() {
            let (mut codes, mut absmax) = (vec![0; x.len()], vec![0.0; blocks(x.len())]);
            quantize(&Pool::with_isa(2, isa), &x, PackedMut { map, codes: &mut codes, absmax: &mut absmax });
            assert_eq!(codes.into_iter().map(u32::from).collect::<Vec<_>>(), golden(&format!("{name}.codes")));
            assert_eq!(bits(&absmax), golden(&format!("{name}.absmax")));
        }
    }
}

#[test]
fn the_nearest_entry_is_found_and_the_lower_of_two() {
    for map in Map::ALL {
        let values = map.values();
        let mut cases = numbers(4000, 1, 0.5);
        for w in values.windows(2) {
            let middle = ((f64::from(w[0]) + f64::from(w[1])) / 2.0) as f32;
            cases.extend([w[0], w[1], middle, middle.next_up(), middle.next_down(), middle.next_up().next_up()]);
        }
        cases.extend([0.0, -0.0, 1.0, -1.0, 1.000_000_1, f32::MIN_POSITIVE, 1e-45, f32::INFINITY, f32::NEG_INFINITY]);
        for x in cases {
            let distance = |i: usize| (x.clamp(-1.0, 1.0) - values[i]).abs();
            let want = (0..256).fold(0, |best, i| if distance(i) < distance(best) { i } else { best });
            assert_eq!(usize::from(map.nearest(x)), want, "{map:?} of {x}");
        }
        assert_eq!(map.nearest(f32::NAN), 0);
    }
}

#[test]
fn levels_and_threads_agree_bit_for_bit() {
    for map in Map::ALL {
        for (len, scale) in [(0, 1.0), (1, 1.0), (255, 1e-20), (256, 1e30), (257, 1e-42), (70_001, 1.0)] {
            let mut x = numbers(len, 3, scale);
            if map == Map::Unsigned {
                x.iter_mut().for_each(|x| *x = x.abs());
            }
            if len > 60_000 {
                // A block of zeros, and blocks that hold a NaN or an infinity.
                x[512..768].fill(0.0);
                x[1000] = f32::NAN;
                x[1300] = f32::INFINITY;
                x[70_000] = -0.0;
            }
            let (mut want, mut scales) = (vec![0; len], vec![0.0; blocks(len)]);
            for ((x, codes), absmax) in x.chunks(BLOCK).zip(want.chunks_mut(BLOCK)).zip(&mut scales) {
                *absmax = encode(map, x, codes);
            }
            for (isa, threads) in Isa::available().flat_map(|isa| [(isa, 1), (isa, 2)]) {
                let pool = Pool::with_isa(threads, isa);
                let (mut codes, mut absmax) = (vec![7; len], vec![7.0; blocks(len)]);
                quantize(&pool, &x, PackedMut { map, codes: &mut codes, absmax: &mut absmax });
                assert_eq!(bits(&absmax), bits(&scales), "{map:?} {len} at {isa}");
                assert!(codes == want, "{map:?} {len} at {isa}");
                let (mut back, mut plain) = (vec![1.0; len], vec![1.0; len]);
                dequantize(&pool, map, &codes, &absmax, &mut back);
                for ((codes, out), &absmax) in codes.chunks(BLOCK).zip(plain.chunks_mut(BLOCK)).zip(&absmax) {
                    decode(map, codes, absmax, out);
                }
                assert_eq!(bits(&back), bits(&plain), "{map:?} {len} at {isa}");
            }
        }
    }
}

#[test]
fn the_error_is_at_most_half_a_gap() {
    for (map, bound) in [(Map::Signed, 0.0071), (Map::Unsigned, 0.0036)] {
        let mut x = numbers(10_000, 5, 1.0);
        if map == Map::Unsigned {
            x.iter_mut().for_each(|x| *x = x.abs());
        }
        let (mut codes, mut absmax, mut back) = (vec![0; x.len()], vec![0.0; blocks(x.len())], vec![0.0; x.len()]);
        let pool = Pool::new(2);
        quantize(&pool, &x, PackedMut { map, codes: &mut codes, absmax: &mut absmax });
        dequantize(&pool, map, &codes, &absmax, &mut back);
        for (i, (x, back)) in x.iter().zip(&back).enumerate() {
            assert!((x - back).abs() <= bound * absmax[i / BLOCK], "{map:?}: {x} became {back}");
            assert!(*x != 0.0 || *back == 0.0);
        }
        // What was rounded once stays.
        let mut again = vec![0; x.len()];
        quantize(&pool, &back, PackedMut { map, codes: &mut again, absmax: &mut absmax });
        let kept = codes.iter().zip(&again).filter(|(a, b)| a == b).count();
        assert!(kept * 100 >= codes.len() * 99, "{map:?}: {kept} of {}", codes.len());
    }
}
