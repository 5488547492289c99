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
        let ids = [8, 0, 3, 3];
        let mut out = vec![0.0; ids.len() * cols];
        gather_rows(&pool, &weight, &ids, &mut out);
        for (row, &id) in out.chunks(cols).zip(&ids) {
            assert_eq!(row, &all[id as usize * cols..][..cols]);
        }
        let mut some = vec![0.0; 2 * cols];
        dequantize_rows(&pool, &weight, 5..7, &mut some);
        assert_eq!(some, all[5 * cols..7 * cols]);
    }
}

/// `golden.txt` is what ggml's own Python package makes of the same bytes and floats; `make_golden.py` wrote it.
#[test]
fn blocks_are_ggml_s_bit_for_bit() {
    let bytes = |hex: &str| -> Vec<u8> {
        let digit = |d: u8| u8::try_from(char::from(d).to_digit(16).unwrap()).unwrap();
        hex.as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
    };
    let floats = |hex: &str| -> Vec<f32> { bytes(hex).chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect() };
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    for (number, line) in include_str!("golden.txt").lines().enumerate() {
        let [what, name, block, values] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("line {number}") };
        let format = Format::ALL.into_iter().find(|f| f.name() == name).unwrap_or_else(|| panic!("no format {name}"));
        let (block, values) = (bytes(block), floats(values));
        if what == "decode" {
            let mut out = vec![0.0; values.len()];
            dequantize(format, &block, &mut out);
            assert_eq!(bits(&out), bits(&values), "{name}, line {number}");
        } else {
            assert_eq!(encoded(format, &values), block, "{name}, line {number}");
        }
    }
}
