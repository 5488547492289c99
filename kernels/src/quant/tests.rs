use super::*;

/// Values in [-1, 1) from a counter.
pub(crate) fn noise(len: usize, seed: u32) -> Vec<f32> {
    (0..len as u32)
        .map(|i| {
            let mut x = (i ^ seed.wrapping_mul(0x9e37_79b9)).wrapping_mul(0x85eb_ca6b);
            x = (x ^ x >> 13).wrapping_mul(0xc2b2_ae35);
            (x ^ x >> 16) as f32 / (1u64 << 31) as f32 - 1.0
        })
        .collect()
}

fn encoded(format: Format, src: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; format.row_bytes(src.len())];
    quantize(format, src, &mut bytes);
    bytes
}

#[test]
fn all_levels_decode_alike() {
    for format in Format::ALL {
        for blocks in [0, 1, 3, 33, 77] {
            let src = noise(blocks * format.block_len(), 7);
            // One byte off every natural alignment.
            let mut bytes = vec![0];
            bytes.extend(encoded(format, &src));
            let mut expected = vec![0.0; src.len()];
            dequantize_with(Isa::Scalar, format, &bytes[1..], &mut expected);
            for isa in Isa::available() {
                let mut out = vec![f32::NAN; src.len()];
                dequantize_with(isa, format, &bytes[1..], &mut out);
                let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&out), bits(&expected), "{format:?} {isa} {blocks}");
            }
        }
    }
}

/// Any bytes are blocks: those drawn here, and blocks whose scales and minima are what floats can be.
#[test]
fn all_levels_decode_any_bytes_alike() {
    let special_halves = [0x0000u16, 0x8000, 0x0001, 0x83ff, 0x3c00, 0xbc00, 0x7bff, 0xfbff, 0x7c00, 0xfc00, 0x7e00, 0xfd01];
    // Upper halves of floats, whose lower ones are drawn.
    let upper_halves = [0x0000u16, 0x8000, 0x0001, 0x807f, 0x3f80, 0xbf80, 0x7f7f, 0xff7f, 0x7f80, 0xff80, 0x7fc0, 0xffff];
    for format in Format::ALL.into_iter().filter(|format| format.block_len() > 1) {
        let halves: &[usize] = match format {
            Format::Q4_1 | Format::Q5_1 | Format::Q4K | Format::Q5K => &[0, 2],
            Format::Q2K => &[80, 82],
            Format::Q3K => &[108],
            Format::Q6K => &[208],
            Format::Nf4 => &[2],
            _ => &[0],
        };
        let specials = if format == Format::Nf4 { upper_halves } else { special_halves };
        let (size, blocks) = (format.block_bytes(), specials.len() * specials.len() + 7);
        // One byte off every natural alignment.
        let mut bytes: Vec<u8> = noise(1 + blocks * size, 17).iter().map(|x| (x * 128.0).floor() as i8 as u8).collect();
        for (block, bytes) in bytes[1..].chunks_exact_mut(size).enumerate() {
            for (which, &at) in halves.iter().enumerate() {
                let special = specials[block / specials.len().pow(which as u32) % specials.len()];
                bytes[at..at + 2].copy_from_slice(&special.to_le_bytes());
            }
        }
        let mut expected = vec![0.0; blocks * format.block_len()];
        dequantize_with(Isa::Scalar, format, &bytes[1..], &mut expected);
        assert!(expected.iter().any(|x| x.is_nan()) && expected.iter().any(|x| x.is_finite()), "{format}");
        for isa in Isa::available() {
            let mut out = vec![1.5; expected.len()];
            dequantize_with(isa, format, &bytes[1..], &mut out);
            for (i, (&x, &y)) in out.iter().zip(&expected).enumerate() {
                assert!(x.to_bits() == y.to_bits() || x.is_nan() && y.is_nan(), "{format} {isa} value {i}: {x} and {y}");
            }
        }
    }
}

#[test]
fn round_trips_stay_within_half_a_step() {
    let src = noise(256 * 8, 3);
    for (format, bound) in [
        (Format::F32, 0.0),
        (Format::F16, 5e-4),
        (Format::BF16, 4e-3),
        (Format::Q8_0, 0.5 / 127.0 + 6e-4),
        // The largest value takes level -8, so its opposite loses a whole step.
        (Format::Q4_0, 1.0 / 8.0 + 1e-3),
        (Format::Q4_1, 1.0 / 15.0 + 1e-3),
        (Format::Q5_0, 1.0 / 16.0 + 1e-3),
        (Format::Q5_1, 1.0 / 31.0 + 1e-3),
        // Levels of these are searched for, so that few values are far off.
        (Format::Iq4Nl, 0.2),
        (Format::Nf4, 0.16),
        (Format::Q2K, 0.6),
        (Format::Q3K, 0.35),
        (Format::Q4K, 0.12),
        (Format::Q5K, 0.07),
        (Format::Q6K, 0.05),
    ] {
        let mut out = vec![0.0; src.len()];
        dequantize(format, &encoded(format, &src), &mut out);
        for (x, y) in src.iter().zip(&out) {
            assert!((x - y).abs() <= bound, "{format:?}: {x} became {y}");
        }
    }
}

#[test]
fn encoders_round_as_the_reference() {
    let ramp: Vec<f32> = (0..32).map(|i| i as f32 - 16.0).collect();
    let q4_0 = encoded(Format::Q4_0, &ramp);
    // d = -16 / -8 = 2; q = trunc(x / 2 + 8.5): -16 -> 0, -15 -> 1, 0 -> 8, 15 -> 15 (clamped from 16).
    assert_eq!(q4_0[..2], half::f16::from_f32(2.0).to_le_bytes());
    assert_eq!((q4_0[2] & 15, q4_0[3] & 15, q4_0[2] >> 4, q4_0[17] >> 4), (0, 1, 8, 15));
    let q4_1 = encoded(Format::Q4_1, &ramp);
    assert_eq!((q4_1[4] & 15, q4_1[19] >> 4), (0, 15));
    let q8_0 = encoded(Format::Q8_0, &ramp);
    assert_eq!((q8_0[2] as i8, q8_0[18] as i8, q8_0[33] as i8), (-127, 0, 119));
}

#[test]
fn zero_blocks_decode_to_zero() {
    for format in Format::ALL {
        let mut out = vec![1.0; 256];
        dequantize(format, &encoded(format, &[0.0; 256]), &mut out);
        assert!(out.iter().all(|&x| x == 0.0), "{format:?}");
    }
}

#[test]
fn non_finite_values_survive_float_formats() {
    for format in [Format::F32, Format::F16, Format::BF16] {
        let src = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        let mut out = [0.0; 3];
        dequantize(format, &encoded(format, &src), &mut out);
        assert!(out[0].is_nan() && out[1..] == src[1..], "{format:?}");
    }
}

#[test]
fn gather_picks_rows() {
    let (rows, cols) = (9, 64);
    let src = noise(rows * cols, 1);
    for isa in Isa::available() {
        let pool = Pool::with_isa(2, isa);
        let bytes = encoded(Format::Q8_0, &src);
        let weight = Weight::new(Format::Q8_0, rows, cols, &bytes);
        let mut all = vec![0.0; rows * cols];
        dequantize_rows(&pool, &weight, 0..rows, &mut all);
        // As many as go past the caches.
        let ids: Vec<i32> = [8, 0, 3, 3].into_iter().cycle().take(100).collect();
        let mut room = vec![0.0; ids.len() * cols + 16];
        let first = room.as_ptr().align_offset(64);
        let out = &mut room[first..][..ids.len() * cols];
        gather_rows(&pool, &weight, &ids, out);
        for (row, &id) in out.chunks(cols).zip(&ids) {
            assert_eq!(row, &all[id as usize * cols..][..cols]);
        }
        let mut some = vec![0.0; 2 * cols];
        dequantize_rows(&pool, &weight, 5..7, &mut some);
        assert_eq!(some, all[5 * cols..7 * cols]);
    }
}

/// Two blocks of 256, as `make_golden.py` draws them.
fn drawn(seed: u32) -> Vec<f32> {
    let shape = |(i, x): (usize, f32)| match seed {
        2 => x * x * x * x * x * 0.02,
        3 => x + 0.75,
        4 => (x * 8.0).round_ties_even() / 8.0,
        5 => -x.abs(),
        6 if i / 32 % 3 == 0 => 0.0,
        _ => x,
    };
    noise(512, seed).into_iter().enumerate().map(shape).collect()
}

/// `golden.txt` is what ggml and bitsandbytes make of the same bytes and floats; `make_golden.py` wrote it and says what its lines are.
#[test]
fn blocks_are_the_reference_s_bit_for_bit() {
    let bytes = |hex: &str| -> Vec<u8> {
        let digit = |d: u8| u8::try_from(char::from(d).to_digit(16).unwrap()).unwrap();
        hex.as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
    };
    let floats = |hex: &str| -> Vec<f32> { bytes(hex).chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect() };
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let named = |name: &str| Format::ALL.into_iter().find(|f| f.name() == name).unwrap_or_else(|| panic!("no format {name}"));
    for (number, line) in include_str!("golden.txt").lines().enumerate() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["decode", name, block, values] => {
                let (block, values) = (bytes(block), floats(values));
                for isa in Isa::available() {
                    let mut out = vec![0.0; values.len()];
                    dequantize_with(isa, named(name), &block, &mut out);
                    assert_eq!(bits(&out), bits(&values), "{name} {isa}, line {number}");
                }
            }
            ["encode", name, block, values] => {
                assert_eq!(encoded(named(name), &floats(values)), bytes(block), "{name}, line {number}");
            }
            ["drawn", name, seed, block] => {
                let (format, values, block) = (named(name), drawn(seed.parse().unwrap()), bytes(block));
                let out = encoded(format, &values);
                let size = format.block_bytes();
                for (index, (out, block)) in out.chunks(size).zip(block.chunks(size)).enumerate() {
                    assert_eq!(out, block, "{name}, seed {seed}, block {index}");
                }
                assert_eq!(out.len(), block.len(), "{name}");
            }
            ["map", values] => assert_eq!(bits(&encode::nf4::dynamic_map()), bits(&floats(values))),
            ["double", seed, offset, codes, absmax, values] => {
                let offset = floats(offset)[0];
                let mut scales: Vec<f32> = noise(700, seed.parse().unwrap()).into_iter().map(|x| x.abs() * 0.3).collect();
                let mean = scales.iter().map(|&scale| f64::from(scale)).sum::<f64>() / 700.0;
                assert!((mean as f32 - offset).abs() <= 1e-6, "{mean} and {offset}");
                let (mut all_codes, mut all_absmax) = (Vec::new(), Vec::new());
                encode::nf4::round_around(offset, &mut scales, |codes, absmax| {
                    all_codes.extend_from_slice(codes);
                    all_absmax.push(absmax);
                });
                assert_eq!(all_codes, bytes(codes), "line {number}");
                assert_eq!(bits(&all_absmax), bits(&floats(absmax)), "line {number}");
                assert_eq!(bits(&scales), bits(&floats(values)), "line {number}");
            }
            _ => panic!("line {number}"),
        }
    }
}

#[test]
fn double_quantization_rounds_scales_and_leaves_codes() {
    let before = encoded(Format::Nf4, &noise(64 * 300, 9));
    let mut after = before.clone();
    round_nf4_scales(&mut after);
    let scale = |block: &[u8]| f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    for (before, after) in before.chunks(36).zip(after.chunks(36)) {
        assert_eq!(before[4..], after[4..]);
        assert!((scale(before) / scale(after) - 1.0).abs() < 0.01);
    }
    assert_ne!(before, after);
    // All scales alike: nothing to round.
    let mut alike = encoded(Format::Nf4, &[0.25; 128]);
    let before = alike.clone();
    round_nf4_scales(&mut alike);
    assert_eq!(alike, before);
}
