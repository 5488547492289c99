use super::*;
use crate::elementwise::Unary;
use crate::format::Format;
use crate::panels::repack;
use crate::quant::tests::noise;
use crate::quant::{dequantize, quantize};

/// Formats that have panels.
fn formats() -> impl Iterator<Item = Format> {
    Format::ALL.into_iter().filter(|&format| Kind::of(format).is_some())
}

fn encoded(format: Format, rows: usize, cols: usize) -> Vec<u8> {
    let mut bytes = vec![0; rows * format.row_bytes(cols)];
    quantize(format, &noise(rows * cols, 3), &mut bytes);
    bytes
}

fn panels(pool: &Pool, w: &Weight<'_>) -> Vec<u8> {
    let mut out = vec![0xa5; repacked_bytes(w.format, w.rows, w.cols).unwrap()];
    repack(pool, w, &mut out);
    out
}

fn quantized(pool: &Pool, m: usize, k: usize, x: &[f32]) -> Vec<u32> {
    let mut out = vec![0; quantized_words(m, k)];
    quantize_rows(pool, m, k, x, &mut out);
    out
}

fn product(pool: &Pool, w: &Weight<'_>, x: &[f32]) -> Vec<f32> {
    let m = x.len() / w.cols;
    let data = panels(pool, w);
    let w = Weight::in_panels(w.format, w.rows, w.cols, &data);
    let mut y = vec![f32::NAN; m * w.rows];
    linear_int8(pool, m, 1.0, &quantized(pool, m, w.cols, x), &w, None, &mut y, 0.0);
    y
}

#[track_caller]
fn assert_same(got: &[f32], expected: &[f32], what: &str) {
    for (i, (x, y)) in got.iter().zip(expected).enumerate() {
        assert!(x.to_bits() == y.to_bits() || x.is_nan() && y.is_nan(), "{what}: element {i} is {x}, not {y}");
    }
}

/// Rows, and columns in blocks of the format.
const SHAPES: [(usize, usize); 4] = [(1, 1), (16, 2), (37, 3), (70, 35)];

#[test]
fn panels_widen_to_what_the_blocks_decode_to() {
    for format in formats() {
        let (n, k) = (21, 2 * format.block_len().max(BLOCK));
        let bytes = encoded(format, n, k);
        let w = Weight::new(format, n, k, &bytes);
        let mut values = vec![0.0; n * k];
        dequantize(format, &bytes, &mut values);
        let kind = Kind::of(format).unwrap();
        for isa in Isa::available() {
            let data = panels(&Pool::with_isa(2, isa), &w);
            let mut words = vec![f32::NAN; k / BLOCK * Block::WORDS + 16];
            let shift = words.as_ptr().align_offset(64);
            let blocks = Block::of(&mut words[shift..][..k / BLOCK * Block::WORDS]);
            for (panel, bytes) in data.chunks_exact(k / kind.unit * kind.unit_bytes()).enumerate() {
                panels::widen(isa, kind, bytes, blocks);
                for row in 0..PANEL {
                    for i in 0..k {
                        let (block, at) = (&blocks[i / BLOCK], i % BLOCK);
                        let level = block.levels[at / 4 * 64 + row * 4 + at % 4];
                        let group = at * kind.groups / BLOCK;
                        let scale = block.scales[group][row];
                        let got = match kind.signed {
                            true if isa == Isa::Amx => scale * f32::from(level as i8),
                            true => scale * (f32::from(level) - 128.0),
                            false => scale.mul_add(f32::from(level), block.minima[group][row]),
                        };
                        let row = panel * PANEL + row;
                        let expected = if row < n { values[row * k + i] } else { 0.0 };
                        assert_eq!(got, expected, "{format:?} {isa} row {row} column {i}");
                    }
                }
            }
        }
    }
}

/// Some rows of a batch: those at the edges of tiles and of the batch, and others.
fn some_rows(m: usize) -> Vec<usize> {
    let mut rows = vec![0, 1, TILE - 1, TILE, m / 3, m / 2, m.saturating_sub(2), m - 1];
    rows.retain(|&row| row < m);
    rows.sort_unstable();
    rows.dedup();
    rows
}

/// The rows of `k` values with these numbers.
fn chosen(rows: &[usize], k: usize, x: &[f32]) -> Vec<f32> {
    rows.iter().flat_map(|&row| &x[row * k..][..k]).copied().collect()
}

/// All levels and numbers of threads agree with each other on all rows of a batch, and with the specification on some of them, which it
/// takes as a batch of their own.
#[track_caller]
fn assert_agree(w: &Weight<'_>, x: &[f32], what: &str) {
    let (n, k) = (w.rows, w.cols);
    let rows = some_rows(x.len() / k);
    let spec = product(&Pool::with_isa(1, Isa::Scalar), w, &chosen(&rows, k, x));
    let reference = product(&Pool::new(1), w, x);
    assert_same(&chosen(&rows, n, &reference), &spec, &format!("{what}: {}", Isa::detect()));
    for isa in Isa::available().filter(|&isa| isa != Isa::Scalar) {
        for threads in [1, 2] {
            let pool = Pool::with_isa(threads, isa);
            assert_same(&product(&pool, w, x), &reference, &format!("{what}: {isa}, {threads} threads"));
        }
    }
    for &row in &rows {
        let alone = product(&Pool::new(1), w, &x[row * k..][..k]);
        assert_same(&alone, &reference[row * n..][..n], &format!("{what}: row {row} alone"));
    }
}

#[test]
fn levels_batches_and_threads_agree_bitwise() {
    for format in formats() {
        for (n, blocks) in SHAPES {
            let k = blocks * format.block_len();
            let bytes = encoded(format, n, k);
            let w = Weight::new(format, n, k, &bytes);
            for m in [1, 3, 4, 5, 8, 12, 19, 258] {
                let mut x = noise(m * k, 7);
                // Blocks of zeros, and of values far apart.
                x[..16].fill(0.0);
                x[k - 1] = 1e6;
                assert_agree(&w, &x, &format!("{format:?} {m}x{n}x{k}"));
            }
        }
    }
}

#[test]
fn the_specification_multiplies_batches_with_any_threads() {
    let (m, n, k) = (29, 37, 256);
    for format in formats() {
        let bytes = encoded(format, n, k);
        let (w, x) = (Weight::new(format, n, k, &bytes), noise(m * k, 7));
        let spec = product(&Pool::with_isa(1, Isa::Scalar), &w, &x);
        assert_same(&product(&Pool::with_isa(3, Isa::Scalar), &w, &x), &spec, &format!("{format:?}"));
        assert_same(&product(&Pool::new(2), &w, &x), &spec, &format!("{format:?}"));
    }
}

#[test]
fn batches_past_what_a_task_keeps_agree() {
    for (format, k) in [(Format::Q4_1, 4096), (Format::Q6K, 8192)] {
        let (m, n) = (22 * TILE + 5, 37);
        // Several ranges, the last one ragged.
        assert!(4 * quantized_words(m, k) > 2 * KEPT);
        let bytes = encoded(format, n, k);
        assert_agree(&Weight::new(format, n, k, &bytes), &noise(m * k, 3), &format!("{format:?} {m}x{n}x{k}"));
    }
}

/// Any bytes are blocks: scales may be zero, negative, subnormal, infinite or not a number. And nothing need be aligned.
#[test]
fn any_blocks_at_any_place_agree() {
    for format in formats() {
        for round in 0..12 {
            let draw = |what: u32, below: usize| ((noise(1, 31 * round + what)[0] + 1.0) * 0.5 * below as f32) as usize;
            let (m, n, k) = (1 + draw(1, 30), 1 + draw(2, 50), (1 + draw(3, 5)) * format.block_len());
            let mut bytes: Vec<u8> =
                noise(1 + n * format.row_bytes(k), 17 + round).iter().map(|x| (x * 128.0).floor() as i8 as u8).collect();
            // Every other round the first block of some rows is zero, scales and all.
            if round % 2 == 0 {
                bytes[1..].chunks_mut(format.row_bytes(k)).step_by(3).for_each(|row| row[..format.block_bytes()].fill(0));
            }
            let w = Weight::new(format, n, k, &bytes[1..]);
            let mut x = noise(1 + m * k, 5 + round);
            let places = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 1e-40, 3e38, f32::MIN_POSITIVE];
            for (i, value) in places.into_iter().enumerate().take(draw(4, 9)) {
                let at = 1 + draw(5 + i as u32, m * k);
                x[at] = value;
            }
            let x = &x[1..];
            let spec = product(&Pool::with_isa(1, Isa::Scalar), &w, x);
            for isa in Isa::available() {
                let pool = Pool::with_isa(2, isa);
                let mut data = vec![0xa5; 3 + repacked_bytes(format, n, k).unwrap()];
                repack(&pool, &w, &mut data[3..]);
                let mut words = vec![7; 1 + quantized_words(m, k)];
                quantize_rows(&pool, m, k, x, &mut words[1..]);
                let mut y = vec![f32::NAN; 1 + m * n];
                let panels = Weight::in_panels(format, n, k, &data[3..]);
                linear_int8(&pool, m, 1.0, &words[1..], &panels, None, &mut y[1..], 0.0);
                assert_same(&y[1..], &spec, &format!("{format:?} {isa} {m}x{n}x{k}"));
            }
        }
    }
}

#[test]
fn a_scale_that_is_not_finite_poisons_its_column() {
    for (format, at) in [(Format::Q8_0, 0), (Format::Q4_1, 0), (Format::Q3K, 108), (Format::Q4K, 0), (Format::Q6K, 208)] {
        let (m, n, k) = (3, 20, 256);
        for scale in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            let mut bytes = encoded(format, n, k);
            bytes[5 * format.row_bytes(k) + at..][..2].copy_from_slice(&half::f16::from_f32(scale).to_le_bytes());
            let w = Weight::new(format, n, k, &bytes);
            // Even where all activations are zero.
            for x in [noise(m * k, 4), vec![0.0; m * k]] {
                for isa in Isa::available() {
                    for (i, y) in product(&Pool::with_isa(1, isa), &w, &x).iter().enumerate() {
                        assert_eq!(y.is_nan(), i % n == 5, "{format:?} {isa} {scale}: element {i} is {y}");
                    }
                }
            }
        }
    }
}

#[test]
fn the_error_is_that_of_rounding_activations() {
    for format in formats() {
        let mut worst = 0f64;
        for (m, n, blocks) in [(3, 40, 2), (1, 17, 7), (14, 16, 1)] {
            let k = blocks * format.block_len().max(64);
            let bytes = encoded(format, n, k);
            let mut w = vec![0.0; n * k];
            dequantize(format, &bytes, &mut w);
            let x = noise(m * k, 9);
            let got = product(&Pool::new(2), &Weight::new(format, n, k, &bytes), &x);
            for (i, got) in got.iter().enumerate() {
                let (x, w) = (&x[i / n * k..][..k], &w[i % n * k..][..k]);
                let (mut exact, mut bound) = (0f64, 0f64);
                for (x, w) in x.chunks(BLOCK).zip(w.chunks(BLOCK)) {
                    let largest = x.iter().fold(0f32, |top, x| top.max(x.abs()));
                    exact += x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>();
                    bound += w.iter().map(|w| f64::from(w.abs())).sum::<f64>() * f64::from(largest) / 254.0;
                }
                let error = (f64::from(*got) - exact).abs();
                assert!(error <= bound + 1e-4, "{format:?}: element {i} is {got}, not {exact}");
                worst = worst.max(error / bound);
            }
        }
        // Errors have random signs, so the bound is far off.
        assert!(worst < 0.4, "{format:?}: {worst} of the bound");
    }
}

#[test]
fn epilogue_scales_adds_and_overwrites() {
    let (m, n, k) = (2, 19, 64);
    let bytes = encoded(Format::Q4_1, n, k);
    let w = Weight::new(Format::Q4_1, n, k, &bytes);
    let pool = Pool::new(2);
    let (x, bias, start) = (noise(m * k, 1), noise(n, 2), noise(m * n, 4));
    let plain = product(&pool, &w, &x);
    let data = panels(&pool, &w);
    let panels = Weight::in_panels(w.format, n, k, &data);
    let mut y = start.clone();
    linear_int8(&pool, m, 0.5, &quantized(&pool, m, k, &x), &panels, Some(&bias), &mut y, 2.0);
    for (i, y) in y.iter().enumerate() {
        assert_eq!(*y, 0.5 * plain[i] + bias[i % n] + 2.0 * start[i]);
    }
}

#[test]
fn products_together_are_those_alone() {
    let k = 512;
    for m in [1, 5, 300] {
        let x = noise(m * k, 6);
        let sizes = [(Format::Q4_1, 70), (Format::Q8_0, 16), (Format::Q4_1, 33)];
        let bytes = sizes.map(|(format, n)| encoded(format, n, k));
        let pool = Pool::new(2);
        let data: Vec<Vec<u8>> =
            sizes.iter().zip(&bytes).map(|(&(format, n), bytes)| panels(&pool, &Weight::new(format, n, k, bytes))).collect();
        let mut y = sizes.map(|(_, n)| vec![1.0; m * n]);
        let mut i = 0;
        let parts = y.each_mut().map(|y| {
            let (format, rows) = sizes[i];
            let w = Weight::in_panels(format, rows, k, &data[i]);
            i += 1;
            let addend = Addend::Output { beta: (i - 1) as f32 };
            Part { w, layer: Layer { alpha: 1.0, bias: None, activation: None, addend }, y }
        });
        linear_int8_many(&pool, m, &quantized(&pool, m, k, &x), parts);
        for (i, (format, n)) in sizes.into_iter().enumerate() {
            let alone = product(&pool, &Weight::new(format, n, k, &bytes[i]), &x);
            let expected: Vec<f32> = alone.iter().map(|y| if i == 0 { *y } else { y + i as f32 }).collect();
            assert_same(&y[i], &expected, &format!("part {i} of {m} rows"));
        }
    }
}

#[test]
fn layers_are_finished_in_one_pass() {
    let (n, k) = (70, 512);
    for m in [1, 5, 300] {
        let (x, other) = (noise(m * k, 6), noise(m * n, 7));
        let bytes = encoded(Format::Q4_1, n, k);
        let pool = Pool::new(2);
        let weight = Weight::new(Format::Q4_1, n, k, &bytes);
        let data = panels(&pool, &weight);
        let w = Weight::in_panels(Format::Q4_1, n, k, &data);
        let addend = Addend::Matrix { values: &other, row_stride: n, beta: 2.0 };
        let layer = Layer { alpha: 1.0, bias: None, activation: Some(Unary::Relu), addend };
        let mut y = vec![f32::NAN; m * n];
        linear_int8_many(&pool, m, &quantized(&pool, m, k, &x), [Part { w, layer, y: &mut y }]);
        let plain = product(&pool, &weight, &x);
        let expected: Vec<f32> = plain.iter().zip(&other).map(|(y, other)| y.max(0.0) + 2.0 * other).collect();
        assert_same(&y, &expected, &format!("{m} rows"));
    }
}

#[test]
fn what_is_not_finite_poisons_its_row_and_what_is_tiny_is_zero() {
    for format in formats() {
        let (m, n, k) = (5, 18, 768);
        let bytes = encoded(format, n, k);
        let w = Weight::new(format, n, k, &bytes);
        for isa in Isa::available() {
            let mut x = noise(m * k, 5);
            x[k + 40] = f32::NAN;
            x[2 * k + 255] = f32::NEG_INFINITY;
            x[3 * k..4 * k].fill(1e-38);
            x[4 * k + 1] = 3e38;
            let y = product(&Pool::with_isa(1, isa), &w, &x);
            let rows: Vec<_> = y.chunks_exact(n).collect();
            assert!(rows[0].iter().all(|y| y.is_finite()));
            assert!(rows[1].iter().chain(rows[2]).all(|y| y.is_nan()), "{format:?} {isa}");
            assert!(rows[3].iter().all(|&y| y == 0.0), "{format:?} {isa}");
            let unclear = rows[4].iter().filter(|y| y.is_nan()).count();
            assert_eq!(unclear, 0, "{format:?} {isa}: large values are not NaN");
        }
    }
}

#[test]
fn activations_round_to_the_nearest_of_their_block() {
    for (m, k) in [(15, 96), (1, 18 * BLOCK), (14, 53 * BLOCK)] {
        let mut x = noise(m * k, 2);
        x[BLOCK + 3] = 1e-38;
        let spec = quantized(&Pool::with_isa(1, Isa::Scalar), m, k, &x);
        for isa in Isa::available() {
            assert_eq!(quantized(&Pool::with_isa(2, isa), m, k, &x), spec);
        }
        let rows = Rows::new(m, k, &spec);
        for (i, x) in x.chunks(k).enumerate() {
            for (block, x) in x.chunks(BLOCK).enumerate() {
                let (width, lines) = rows.tile(i / TILE, block);
                assert_eq!(width, TILE.min(m - i / TILE * TILE));
                let line = lines[i % TILE];
                let half = line.d * 0.5001;
                assert!(x.iter().zip(line.p).all(|(x, p)| (x - line.d * f32::from(p)).abs() <= half));
                assert!(line.p.iter().any(|p| p.abs() == 127));
                let sum = |p: &[i8]| p.iter().map(|&p| i32::from(p)).sum::<i32>();
                let halves = [sum(&line.p[..16]), sum(&line.p[16..])];
                assert_eq!((line.sum, line.start), (sum(&line.p) as f32, rows::START - 128 * sum(&line.p)));
                assert_eq!((line.halves, line.starts), (halves.map(|sum| sum as f32), halves.map(|sum| rows::START - 128 * sum)));
            }
        }
    }
}
