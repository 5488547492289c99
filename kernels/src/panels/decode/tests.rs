//! Panels and the blocks they were made of hold the same bits.

use super::*;
use crate::cross_entropy::{self, Spec};
use crate::format::Format;
use crate::gemm::Addend;
use crate::linear::{Layer, linear, linear_dx};
use crate::lora::{LowRank, low_rank_linear, low_rank_linear_dx};
use crate::panels::{repack, repacked_bytes};
use crate::pool::Pool;
use crate::quant::tests::noise;
use crate::quant::{dequantize, dequantize_rows, gather_rows, quantize};

/// Blocks, panels and values of a weight.
fn case(format: Format, rows: usize, cols: usize) -> (Vec<u8>, Vec<u8>, Vec<f32>) {
    let (mut blocks, mut values) = (vec![0; format.row_bytes(rows * cols)], vec![0.0; rows * cols]);
    quantize(format, &noise(rows * cols, 7), &mut blocks);
    dequantize(format, &blocks, &mut values);
    let mut panels = vec![0; repacked_bytes(format, rows, cols).unwrap()];
    repack(&Pool::new(1), &Weight::new(format, rows, cols, &blocks), &mut panels);
    (blocks, panels, values)
}

fn formats() -> impl Iterator<Item = Format> {
    Format::ALL.into_iter().filter(|&format| Kind::of(format).is_some())
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn values_are_those_of_the_blocks() {
    for format in formats() {
        let (rows, cols) = (37, 2 * format.block_len());
        let (_, panels, values) = case(format, rows, cols);
        for isa in Isa::available() {
            let weight = Decoded::new(isa, &Weight::in_panels(format, rows, cols, &panels)).unwrap();
            for stride in [PANEL, PANEL + 5] {
                let unit = weight.unit();
                let mut out = vec![0.5; (cols - unit) * stride];
                for panel in 0..rows.div_ceil(PANEL) {
                    weight.columns(panel, unit..cols, stride, &mut out);
                    for row in 0..PANEL.min(rows - panel * PANEL) {
                        for p in unit..cols {
                            let (got, want) = (out[(p - unit) * stride + row], values[(panel * PANEL + row) * cols + p]);
                            assert_eq!(got.to_bits(), want.to_bits(), "{format} {isa}, row {row} of panel {panel}, column {p}");
                        }
                    }
                }
            }
            let (pool, weight) = (Pool::with_isa(2, isa), Weight::in_panels(format, rows, cols, &panels));
            for range in [0..rows, 16..30, 5..rows] {
                let mut some = vec![0.0; range.len() * cols];
                dequantize_rows(&pool, &weight, range.clone(), &mut some);
                assert_eq!(bits(&some), bits(&values[range.start * cols..range.end * cols]), "{format} {isa}, rows {range:?}");
            }
            let ids = [36, 0, 17, 36];
            let mut found = vec![0.0; ids.len() * cols];
            gather_rows(&pool, &weight, &ids, &mut found);
            for (id, found) in ids.into_iter().zip(found.chunks_exact(cols)) {
                assert_eq!(bits(found), bits(&values[id as usize * cols..][..cols]), "{format} {isa}, row {id}");
            }
        }
    }
}

#[test]
fn products_are_those_of_the_blocks() {
    let (rows, m, rank) = (90, 50, 8);
    for format in formats() {
        let cols = if format.block_len() > 32 { format.block_len() } else { 160 };
        let (blocks, panels, _) = case(format, rows, cols);
        let (x, dy, h) = (noise(m * cols, 1), noise(m * rows, 2), noise(m * rank, 3));
        let v: Vec<u8> = noise(rows.max(cols) * rank, 4).iter().flat_map(|v| v.to_le_bytes()).collect();
        let targets: Vec<i32> = (0..m).map(|i| (i * 7 % rows) as i32).collect();
        for isa in Isa::available() {
            let pool = Pool::with_isa(2, isa);
            let run = |w: &Weight<'_>| {
                let (mut y, mut dx) = (vec![0.0; m * rows], vec![0.0; m * cols]);
                linear(&pool, m, 0.5, &x, w, None, &mut y, 0.0);
                linear_dx(&pool, m, 0.5, &dy, w, &mut dx, 0.0);
                let low = |n: usize, k: usize| Weight::new(Format::F32, n, k, &v[..4 * n * k]);
                let (mut low_y, mut low_dx) = (vec![0.0; m * rows], vec![0.0; m * cols]);
                let layer = Layer { alpha: 1.0, bias: None, activation: None, addend: Addend::None };
                let forward = LowRank { factor: 2.0, h: &h, v: low(rows, rank) };
                low_rank_linear(&pool, m, &x, w, &forward, &layer, &mut low_y);
                let backward = LowRank { factor: 2.0, h: &h, v: low(rank, cols) };
                low_rank_linear_dx(&pool, m, 1.0, &dy, w, &backward, Addend::None, &mut low_dx);
                let spec = Spec { label_smoothing: 0.0, z_loss: 0.0, softcap: None, temperature: 1.0 };
                let mut scratch = vec![0.0; cross_entropy::scratch_len(m, rows, cols, false)];
                let (mut loss, mut lse, mut unit) = (vec![0.0; m], vec![0.0; m], vec![0.0; m * cols]);
                let dx_unit = Some(&mut unit[..]);
                cross_entropy::forward(&pool, &spec, m, &x, w, &targets, &mut loss, &mut lse, dx_unit, &mut scratch);
                [y, dx, low_y, low_dx, loss, lse, unit].map(|values| bits(&values))
            };
            let want = run(&Weight::new(format, rows, cols, &blocks));
            assert_eq!(run(&Weight::in_panels(format, rows, cols, &panels)), want, "{format} {isa}");
        }
    }
}

#[test]
#[should_panic(expected = "weight bytes")]
fn panels_of_another_length_are_refused() {
    let (_, panels, _) = case(Format::Q4_1, 20, 64);
    Decoded::new(Isa::Scalar, &Weight { format: Format::Q4_1, layout: Layout::Panels, rows: 20, cols: 96, data: &panels });
}
