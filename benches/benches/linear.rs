//! Linear layers on quantized weights, exact and in whole numbers, beside the f32 product of the same shape.
//!
//! `cargo bench -p swift-benches --bench linear -- [threads] [instruction set] [part of a name]`
//!
//! Rates in GFLOP/s count two operations for each weight and row; GB/s are bytes of the weight as stored, of one row only. Ceilings
//! measured first: reading memory, fused multiply-adds, and products of bytes with their sums (`maddubs`, or `vpdpbusd`).

use std::hint::black_box;
use std::time::Duration;

use swift_benches::fastest;
use swift_kernels::ceiling::Ceilings;
use swift_kernels::format::{Format, Weight};
use swift_kernels::gemm::{MatRef, gemm};
use swift_kernels::linear::int8::{Panels, linear_int8, quantize_rows, quantized_words, repack, repacked_bytes};
use swift_kernels::linear::{linear, linear_dx};
use swift_kernels::pool::Pool;
use swift_kernels::quant::quantize;

const BUDGET: Duration = Duration::from_millis(150);

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 7919 % 1000) as f32 * 1e-3 - 0.5).collect()
}

/// Copies of a weight that together are past the caches, so that one row reads memory.
const PAST_CACHE: usize = 96 << 20;

struct Bench {
    pool: Pool,
    filter: String,
    bytes_per_second: f64,
    byte_products: f64,
}

impl Bench {
    fn layer(&self, format: Format, n: usize, k: usize) {
        let pool = &self.pool;
        let name = format!("{format:?} {n}x{k}");
        if !name.contains(&self.filter) {
            return;
        }
        let (m, w) = (512, values(n * k));
        let mut bytes = vec![0; n * format.row_bytes(k)];
        quantize(format, &w, &mut bytes);
        let weight = Weight::new(format, n, k, &bytes);
        let x = values(m * k);
        let (mut y, mut dx) = (vec![0.0; m * n], vec![0.0; m * k]);
        let flops = 2.0 * (m * n * k) as f64 * 1e-9;
        let dense = flops
            / fastest(BUDGET, || {
                let b = MatRef::new(&w, k).transposed();
                gemm(pool, m, n, k, 1.0, MatRef::new(&x, k), b, black_box(&mut y), n, 0.0);
            });
        let exact = flops / fastest(BUDGET, || linear(pool, m, 1.0, &x, &weight, None, black_box(&mut y), 0.0));
        let dense_dx = flops
            / fastest(BUDGET, || {
                gemm(pool, m, k, n, 1.0, MatRef::new(&y, n), MatRef::new(&w, k), black_box(&mut dx), k, 0.0);
            });
        let gradient = flops / fastest(BUDGET, || linear_dx(pool, m, 1.0, &y, &weight, black_box(&mut dx), 0.0));
        println!(
            "{name:24} 512 rows: f32 {dense:7.1}  exact {exact:7.1} GFLOP/s, {:3.0}%;  f32 dX {dense_dx:7.1}  dX {gradient:7.1}, {:3.0}%",
            100.0 * exact / dense,
            100.0 * gradient / dense_dx
        );
        let copies = PAST_CACHE.div_ceil(bytes.len());
        let all = bytes.repeat(copies);
        let one = |run: &mut dyn FnMut(usize)| {
            let mut copy = 0;
            fastest(BUDGET, || {
                // A quarter of the copies in each timed run, each copy read once in four runs.
                for _ in 0..copies.div_ceil(4) {
                    run(copy % copies);
                    copy += 1;
                }
            }) / copies.div_ceil(4) as f64
        };
        let x1 = &x[..k];
        let mut y1 = vec![0.0; n];
        let seconds = one(&mut |copy| {
            let w = Weight::new(format, n, k, &all[copy * bytes.len()..][..bytes.len()]);
            linear(pool, 1, 1.0, x1, &w, None, black_box(&mut y1), 0.0);
        });
        self.decode("exact", bytes.len(), n * k, seconds);
        let Some(len) = repacked_bytes(format, n, k) else { return };
        drop(all);
        let mut panels = vec![0; len];
        repack(pool, &weight, &mut panels);
        let mut quantized = vec![0; quantized_words(m, k)];
        let int8 = flops
            / fastest(BUDGET, || {
                quantize_rows(pool, m, k, &x, &mut quantized);
                let w = Panels { format, rows: n, cols: k, data: &panels };
                linear_int8(pool, m, 1.0, &quantized, &w, None, black_box(&mut y), 0.0);
            });
        let percent = 100.0 * int8 / self.byte_products;
        println!("{:24} 512 rows: int8 {int8:7.1} GFLOP/s, {percent:3.0}% of byte products", "");
        let all = panels.repeat(copies);
        let seconds = one(&mut |copy| {
            quantize_rows(pool, 1, k, x1, &mut quantized);
            let w = Panels { format, rows: n, cols: k, data: &all[copy * len..][..len] };
            linear_int8(pool, 1, 1.0, &quantized, &w, None, black_box(&mut y1), 0.0);
        });
        self.decode("int8", len, n * k, seconds);
    }

    fn decode(&self, mode: &str, bytes: usize, weights: usize, seconds: f64) {
        let rate = bytes as f64 / seconds;
        println!(
            "{:24} 1 row: {mode:5} {:7.1} GFLOP/s {:6.1} GB/s, {:3.0}% of reading",
            "",
            2e-9 * weights as f64 / seconds,
            rate * 1e-9,
            100.0 * rate / self.bytes_per_second
        );
    }
}

fn main() {
    let (mut pool, mut filter) = (Pool::new(1), String::new());
    for arg in std::env::args().skip(1).filter(|arg| arg != "--bench") {
        if let Ok(threads) = arg.parse() {
            pool = Pool::with_isa(threads, pool.isa());
        } else if let Ok(isa) = arg.parse() {
            pool = Pool::with_isa(pool.threads(), isa);
        } else {
            filter = arg;
        }
    }
    let ceilings = Ceilings::measure(&pool);
    let (bytes_per_second, byte_products) = (ceilings.read, ceilings.int8_ops * 1e-9);
    println!(
        "{} threads, {}; reading {:.1} GB/s, byte products {byte_products:.0} GOP/s",
        pool.threads(),
        pool.isa(),
        bytes_per_second * 1e-9
    );
    let bench = Bench { pool, filter, bytes_per_second, byte_products };
    for format in Format::ALL.into_iter().filter(|format| format.block_len() > 1) {
        for (n, k) in [(1536, 576), (4864, 896)] {
            // Rows of whole blocks: long ones come as the way down of the same layer.
            let (n, k) = if k % format.block_len() == 0 { (n, k) } else { (k, n) };
            bench.layer(format, n, k);
        }
    }
}
