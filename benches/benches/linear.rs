//! Linear layers on quantized weights, exact and in whole numbers, beside the f32 product of the same shape.
//!
//! `cargo bench -p swift-benches --bench linear -- [threads] [instruction set] [words of a case ...]`
//!
//! A case is named by its format, shape, way and rows, as it is printed: `Q4_K 4864x896 int8 512`. Only cases that have all the
//! words given are measured. A figure is the median of its runs. Rates in GFLOP/s count two operations for each weight and row;
//! GB/s are bytes of the weight as stored in its file, of few rows, from copies that together are past the caches. Ceilings
//! measured first: reading memory, fused multiply-adds, and products of bytes with their sums (`maddubs`, or `vpdpbusd`).

use std::hint::black_box;
use std::time::Duration;

use swift_benches::median;
use swift_kernels::ceiling::Ceilings;
use swift_kernels::format::{Format, Weight};
use swift_kernels::gemm::{MatRef, gemm};
use swift_kernels::linear::int8::{linear_int8, quantize_rows, quantized_words};
use swift_kernels::linear::{linear, linear_dx};
use swift_kernels::pages::prefer_huge;
use swift_kernels::panels::{repack, repacked_bytes};
use swift_kernels::pool::Pool;
use swift_kernels::quant::quantize;

const BUDGET: Duration = Duration::from_millis(100);

/// Bytes of the copies of a weight of which one row reads memory: several times the largest caches in use.
const PAST_CACHE: usize = 1 << 30;

/// What is measured of a weight.
/// `exact` and `dx` read the blocks of a file; with `panels` they, too, read what `int8` does.
const WAYS: [&str; 10] = ["f32", "exact", "exact-panels", "f32-dx", "dx", "dx-panels", "repack", "round", "int8", "past-cache"];

/// Rows of activations: one sequence, a few that are decoded together, prompts.
const ROWS: [usize; 7] = [1, 2, 4, 8, 16, 64, 512];

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 7919 % 1000) as f32 * 1e-3 - 0.5).collect()
}

/// Copies of a weight, one after the other.
fn repeated(bytes: &[u8], copies: usize) -> Vec<u8> {
    let mut all = Vec::with_capacity(bytes.len() * copies);
    prefer_huge(all.spare_capacity_mut());
    (0..copies).for_each(|_| all.extend_from_slice(bytes));
    all
}

struct Bench {
    pool: Pool,
    words: Vec<String>,
    ceilings: Ceilings,
}

impl Bench {
    /// Reports a rate if the case is wanted.
    fn case(&self, name: &str, work: f64, unit: &str, ceiling: f64, run: &mut dyn FnMut() -> f64) {
        if self.words.iter().all(|word| name.split(' ').any(|part| part == word)) {
            let rate = work / run();
            println!("{name:30} {:8.1} {unit:7} {:4.0}% of {:.0}", rate * 1e-9, 100.0 * rate / ceiling, ceiling * 1e-9);
        }
    }

    fn layer(&self, format: Format, n: usize, k: usize) {
        let (pool, c) = (&self.pool, &self.ceilings);
        let name = |way: &str, m: usize| format!("{format} {n}x{k} {way} {m}");
        let shape = [format.to_string(), format!("{n}x{k}")];
        let other =
            |word: &String| Format::ALL.iter().any(|f| f.name() == word) || word.contains('x') && !WAYS.contains(&word.as_str());
        if self.words.iter().any(|word| other(word) && !shape.contains(word)) {
            return;
        }
        let w = values(n * k);
        let mut bytes = vec![0; n * format.row_bytes(k)];
        quantize(format, &w, &mut bytes);
        let weight = Weight::new(format, n, k, &bytes);
        let m = 512;
        let flops = |m: usize| 2.0 * (m * n * k) as f64;
        let x = values(m * k);
        let (mut y, mut dx) = (vec![0.0; m * n], vec![0.0; m * k]);
        self.case(&name("f32", m), flops(m), "GFLOP/s", c.flops, &mut || {
            let b = MatRef::new(&w, k).transposed();
            median(BUDGET, || gemm(pool, m, n, k, 1.0, MatRef::new(&x, k), b, black_box(&mut y), n, 0.0))
        });
        self.case(&name("exact", m), flops(m), "GFLOP/s", c.flops, &mut || {
            median(BUDGET, || linear(pool, m, 1.0, &x, &weight, None, black_box(&mut y), 0.0))
        });
        self.case(&name("f32-dx", m), flops(m), "GFLOP/s", c.flops, &mut || {
            let (y, w) = (MatRef::new(&y, n), MatRef::new(&w, k));
            median(BUDGET, || gemm(pool, m, k, n, 1.0, y, w, black_box(&mut dx), k, 0.0))
        });
        self.case(&name("dx", m), flops(m), "GFLOP/s", c.flops, &mut || {
            median(BUDGET, || linear_dx(pool, m, 1.0, &y, &weight, black_box(&mut dx), 0.0))
        });
        let copies = PAST_CACHE.div_ceil(bytes.len());
        // Some copies in each timed run, all of them in several.
        let some = copies.div_ceil(8);
        let past_cache = |run: &mut dyn FnMut(usize)| {
            let mut copy = 0;
            median(4 * BUDGET, || {
                for _ in 0..some {
                    run(copy % copies);
                    copy += 1;
                }
            }) / some as f64
        };
        for m in [1, 4, 8] {
            self.case(&name("exact", m), bytes.len() as f64, "GB/s", c.read, &mut || {
                let all = repeated(&bytes, copies);
                past_cache(&mut |copy| {
                    let w = Weight::new(format, n, k, &all[copy * bytes.len()..][..bytes.len()]);
                    linear(pool, m, 1.0, &x[..m * k], &w, None, black_box(&mut y[..m * n]), 0.0);
                })
            });
        }
        let Some(len) = repacked_bytes(format, n, k) else { return };
        let mut panels = vec![0; len];
        self.case(&name("repack", n), bytes.len() as f64, "GB/s", c.copy / 2.0, &mut || {
            median(BUDGET, || repack(pool, &weight, black_box(&mut panels)))
        });
        repack(pool, &weight, &mut panels);
        let weight = Weight::in_panels(format, n, k, &panels);
        self.case(&name("exact-panels", m), flops(m), "GFLOP/s", c.flops, &mut || {
            median(BUDGET, || linear(pool, m, 1.0, &x, &weight, None, black_box(&mut y), 0.0))
        });
        self.case(&name("dx-panels", m), flops(m), "GFLOP/s", c.flops, &mut || {
            median(BUDGET, || linear_dx(pool, m, 1.0, &y, &weight, black_box(&mut dx), 0.0))
        });
        for m in [1, 4, 8] {
            self.case(&name("exact-panels", m), bytes.len() as f64, "GB/s", c.read, &mut || {
                let all = repeated(&panels, copies);
                past_cache(&mut |copy| {
                    let w = Weight::in_panels(format, n, k, &all[copy * len..][..len]);
                    linear(pool, m, 1.0, &x[..m * k], &w, None, black_box(&mut y[..m * n]), 0.0);
                })
            });
        }
        let mut quantized = vec![0; quantized_words(m, k)];
        self.case(&name("round", m), 4.0 * (m * k) as f64, "GB/s", c.read, &mut || {
            median(BUDGET, || quantize_rows(pool, m, k, &x, black_box(&mut quantized)))
        });
        for m in ROWS {
            self.case(&name("int8", m), flops(m), "GOP/s", c.int8_ops, &mut || {
                median(BUDGET, || {
                    quantize_rows(pool, m, k, &x[..m * k], &mut quantized);
                    let w = Weight::in_panels(format, n, k, &panels);
                    linear_int8(pool, m, 1.0, &quantized, &w, None, black_box(&mut y[..m * n]), 0.0);
                })
            });
        }
        for m in ROWS.into_iter().filter(|&m| m <= 16) {
            self.case(&name("past-cache", m), bytes.len() as f64, "GB/s", c.read, &mut || {
                let all = repeated(&panels, copies);
                past_cache(&mut |copy| {
                    quantize_rows(pool, m, k, &x[..m * k], &mut quantized);
                    let w = Weight::in_panels(format, n, k, &all[copy * len..][..len]);
                    linear_int8(pool, m, 1.0, &quantized, &w, None, black_box(&mut y[..m * n]), 0.0);
                })
            });
        }
    }
}

fn main() {
    let (mut pool, mut words) = (Pool::new(2), Vec::new());
    for arg in std::env::args().skip(1).filter(|arg| arg != "--bench") {
        match (words.is_empty(), arg.parse(), arg.parse()) {
            (true, Ok(threads), _) if threads < 100 => pool = Pool::with_isa(threads, pool.isa()),
            (_, _, Ok(isa)) => pool = Pool::with_isa(pool.threads(), isa),
            _ => words.push(arg),
        }
    }
    let ceilings = Ceilings::measure(&pool);
    println!(
        "{} threads, {}; reading {:.1} GB/s, byte products {:.0} GOP/s",
        pool.threads(),
        pool.isa(),
        ceilings.read * 1e-9,
        ceilings.int8_ops * 1e-9
    );
    let bench = Bench { pool, words, ceilings };
    for format in Format::ALL.into_iter().filter(|format| format.block_len() > 1) {
        for (n, k) in [(1536, 576), (576, 1536), (896, 4864), (4864, 896)] {
            if k % format.block_len() == 0 {
                bench.layer(format, n, k);
            }
        }
    }
}
