//! Matrix products against the `gemm` crate, in GFLOP/s, and weight streaming in GB/s.
//!
//! `cargo bench -p swift-benches --bench gemm -- [threads] [instruction set] [part of a name]`

use std::hint::black_box;
use std::time::Duration;

use gemm::Parallelism;
use half::bf16;
use swift_benches::median;
use swift_kernels::ceiling::Ceilings;
use swift_kernels::elementwise::Unary;
use swift_kernels::format::{Format, Weight};
use swift_kernels::gemm::{Addend, Factor, Fused, MatRef, Output, gemm as swift_gemm, gemm_fused};
use swift_kernels::linear::{linear, linear_dx};
use swift_kernels::pool::{Disjoint, Pool};
use swift_kernels::quant::quantize;

const BUDGET: Duration = Duration::from_millis(300);

/// What the command line chose.
struct Bench {
    pool: Pool,
    filter: String,
}

fn main() {
    let mut bench = Bench { pool: Pool::new(1), filter: String::new() };
    for arg in std::env::args().skip(1).filter(|arg| arg != "--bench") {
        if let Ok(threads) = arg.parse() {
            bench.pool = Pool::with_isa(threads, bench.pool.isa());
        } else if let Ok(isa) = arg.parse() {
            bench.pool = Pool::with_isa(bench.pool.threads(), isa);
        } else {
            bench.filter = arg;
        }
    }
    let pool = &bench.pool;
    println!("{} threads, {}", pool.threads(), pool.isa());
    println!("{:40} {:>9} {:>9} {:>9}", "", "us", "GFLOP/s", "gemm");
    report("ceiling of multiply-adds", 1.0, Ceilings::measure(pool).flops, None);
    for size in [64, 128, 256, 512, 1024, 2048] {
        bench.product("square", [size, size, size], [false, false]);
    }
    for [m, n, k] in [[1024, 49152, 576], [512, 1536, 576], [512, 576, 1536], [1024, 4864, 896]] {
        bench.product("x W^T", [m, n, k], [false, true]);
    }
    bench.fused([1024, 1536, 576]);
    bench.product("nt", [1024, 1536, 576], [false, true]);
    bench.product("nn", [1024, 576, 1536], [false, false]);
    bench.product("tn", [576, 1536, 1024], [true, false]);
    bench.product("lora x A^T", [1024, 8, 576], [false, true]);
    bench.product("lora h B^T", [1024, 1536, 8], [false, true]);
    bench.product("lora dy B", [1024, 8, 1536], [false, false]);
    bench.product("lora dh A", [1024, 576, 8], [false, false]);
    bench.product("lora dA = dh^T x", [8, 576, 1024], [true, false]);
    bench.product("lora dB = dy^T h", [1536, 8, 1024], [true, false]);
    for format in Format::ALL {
        bench.layer(format, 1024, 1536, 576);
        bench.layer(format, 1024, 576, 1536);
    }
    // A weight within the caches, and one far beyond them.
    for (n, k) in [(1536, 576), (32768, 2048)] {
        for format in Format::ALL {
            bench.decode(format, 1, n, k);
        }
        for m in [2, 4, 8, 16, 64] {
            bench.decode(Format::Q4_1, m, n, k);
        }
    }
}

fn report(name: &str, seconds: f64, flops: f64, baseline: Option<f64>) {
    let rate = |seconds: f64| flops / seconds * 1e-9;
    let baseline = baseline.map_or(String::new(), |seconds| format!("{:9.1}", rate(seconds)));
    println!("{name:40} {:9.1} {:9.1} {baseline}", seconds * 1e6, rate(seconds));
}

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 7919 % 1000) as f32 * 1e-3 - 0.5).collect()
}

fn encoded(format: Format, rows: usize, cols: usize) -> Vec<u8> {
    let mut bytes = vec![0; rows * format.row_bytes(cols)];
    quantize(format, &values(rows * cols), &mut bytes);
    bytes
}

impl Bench {
    /// `transposed` says whether the left and the right operand are stored transposed.
    fn product(&self, name: &str, [m, n, k]: [usize; 3], transposed: [bool; 2]) {
        let name = format!("{name} {m}x{n}x{k}");
        let pool = &self.pool;
        if !name.contains(&self.filter) {
            return;
        }
        let (a, b, mut c) = (values(m * k), values(k * n), vec![0.0; m * n]);
        let left = if transposed[0] { MatRef::new(&a, m).transposed() } else { MatRef::new(&a, k) };
        let right = if transposed[1] { MatRef::new(&b, k).transposed() } else { MatRef::new(&b, n) };
        let ours = median(BUDGET, || {
            swift_gemm(pool, m, n, k, 1.0, left, right, black_box(&mut c), n, 0.0);
        });
        // The `gemm` crate is built without a thread pool of its own: ours gives each thread equally many columns.
        let baseline = median(BUDGET, || {
            let c = Disjoint::new(black_box(&mut c));
            let cols = n.div_ceil(pool.threads());
            pool.run(n.div_ceil(cols), &|task| {
                let j = task * cols;
                // SAFETY: strides and sizes are those of the vectors above; tasks have columns of their own.
                unsafe {
                    gemm::gemm(
                        m,
                        cols.min(n - j),
                        k,
                        c.as_mut_ptr().add(j),
                        1,
                        n as isize,
                        false,
                        left.data.as_ptr(),
                        left.col_stride as isize,
                        left.row_stride as isize,
                        right.data.as_ptr().add(j * right.col_stride),
                        right.col_stride as isize,
                        right.row_stride as isize,
                        0.0,
                        1.0,
                        false,
                        false,
                        false,
                        Parallelism::None,
                    );
                }
            });
        });
        report(&name, ours, 2.0 * (m * n * k) as f64, Some(baseline));
    }

    /// `x W^T` with weights as halves, and with what an epilogue can do.
    fn fused(&self, [m, n, k]: [usize; 3]) {
        let pool = &self.pool;
        let (x, w, bias, mut y) = (values(m * k), values(n * k), values(n), vec![0.0; m * n]);
        let halves: Vec<bf16> = w.iter().map(|&w| bf16::from_f32(w)).collect();
        let (floats, halves) = (MatRef::new(&w, k).transposed(), MatRef::new(&halves, k).transposed());
        let cases: [(&str, Factor<'_>, Option<Unary>); 3] = [
            ("bf16", Factor::Matrix { b: halves.into(), k, n }, None),
            ("silu", Factor::Matrix { b: floats.into(), k, n }, Some(Unary::Silu)),
            ("gelu", Factor::Matrix { b: floats.into(), k, n }, Some(Unary::GeluErf)),
        ];
        for (name, b, activation) in cases {
            let name = format!("fused {name} {m}x{n}x{k}");
            if !name.contains(&self.filter) {
                continue;
            }
            let a = MatRef::new(&x, k).into();
            let product = Fused { m, a, b, alpha: 1.0, bias: Some(&bias), activation, addend: Addend::None };
            let seconds = median(BUDGET, || gemm_fused(pool, &product, Output::F32(black_box(&mut y)), n));
            report(&name, seconds, 2.0 * (m * n * k) as f64, None);
        }
    }

    fn layer(&self, format: Format, m: usize, n: usize, k: usize) {
        let pool = &self.pool;
        if !format!("linear {format:?}").contains(&self.filter) {
            return;
        }
        let bytes = encoded(format, n, k);
        let w = Weight::new(format, n, k, &bytes);
        let (mut x, mut y) = (values(m * k), values(m * n));
        let flops = 2.0 * (m * n * k) as f64;
        let forward = median(BUDGET, || linear(pool, m, 1.0, &x, &w, None, black_box(&mut y), 0.0));
        report(&format!("linear {format:?} {m}x{n}x{k}"), forward, flops, None);
        let backward = median(BUDGET, || linear_dx(pool, m, 1.0, &y, &w, black_box(&mut x), 0.0));
        report(&format!("linear_dx {format:?} {m}x{k}x{n}"), backward, flops, None);
    }

    /// Few rows of activations: bound by reading the weight.
    fn decode(&self, format: Format, m: usize, n: usize, k: usize) {
        let name = format!("decode {format:?} {m}x{n}x{k}");
        let pool = &self.pool;
        if !name.contains(&self.filter) {
            return;
        }
        let bytes = encoded(format, n, k);
        let w = Weight::new(format, n, k, &bytes);
        let (x, mut y) = (values(m * k), vec![0.0; m * n]);
        let seconds = median(BUDGET, || linear(pool, m, 1.0, &x, &w, None, black_box(&mut y), 0.0));
        println!(
            "{:40} {:9.1} {:9.1} {:9.1} GB/s",
            name,
            seconds * 1e6,
            2.0 * (m * n * k) as f64 / seconds * 1e-9,
            bytes.len() as f64 / seconds * 1e-9
        );
    }
}
