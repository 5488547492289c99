//! Matrix products against the `gemm` crate, in GFLOP/s, and weight streaming in GB/s.
//!
//! `cargo bench -p swift-benches --bench gemm -- [threads] [instruction set] [part of a name]`

use std::hint::black_box;
use std::time::Duration;

use gemm::Parallelism;
use swift_benches::fastest;
use swift_kernels::format::{Format, Weight};
use swift_kernels::gemm::{MatRef, gemm as swift_gemm};
use swift_kernels::linear::{linear, linear_dx};
use swift_kernels::pool::Pool;
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
    let peak = multiply_add_peak(pool.threads());
    report(&format!("peak of FMA, {} threads", pool.threads()), 1.0, peak, None);
    for size in [64, 128, 256, 512, 1024, 2048] {
        bench.product("square", [size, size, size], [false, false]);
    }
    for [m, n, k] in [[1024, 49152, 576], [512, 1536, 576], [512, 576, 1536], [1024, 4864, 896]] {
        bench.product("x W^T", [m, n, k], [false, true]);
    }
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

/// Operations a second of multiply-adds on registers with 256-bit vectors, all threads together; what AVX2 products cannot
/// exceed. Zero where the processor has none.
fn multiply_add_peak(threads: usize) -> f64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("fma") {
        const ROUNDS: usize = 20_000_000;
        const CHAINS: usize = 12;
        #[target_feature(enable = "avx2,fma")]
        fn chains() -> f32 {
            use std::arch::x86_64::*;
            let (factor, term) = (_mm256_set1_ps(black_box(1.000_000_1)), _mm256_set1_ps(black_box(1e-9)));
            let mut sums: [__m256; CHAINS] = std::array::from_fn(|i| _mm256_set1_ps(i as f32));
            for _ in 0..ROUNDS {
                for sum in &mut sums {
                    *sum = _mm256_fmadd_ps(*sum, factor, term);
                }
            }
            sums.into_iter().map(|sum| _mm256_cvtss_f32(sum)).sum()
        }
        let seconds = fastest(BUDGET, || {
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    // SAFETY: FMA was detected above, and every such processor has AVX2.
                    scope.spawn(|| black_box(unsafe { chains() }));
                }
            });
        });
        return (threads * ROUNDS * CHAINS * 16) as f64 / seconds;
    }
    let _ = threads;
    0.0
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
        let ours = fastest(BUDGET, || {
            swift_gemm(pool, m, n, k, 1.0, left, right, black_box(&mut c), n, 0.0);
        });
        // The `gemm` crate is built without its thread pool, so it is a baseline for one thread.
        let baseline = (pool.threads() == 1).then(|| {
            fastest(BUDGET, || {
                let c = black_box(&mut c);
                // SAFETY: strides and sizes are those of the vectors above.
                unsafe {
                    gemm::gemm(
                        m,
                        n,
                        k,
                        c.as_mut_ptr(),
                        1,
                        n as isize,
                        false,
                        left.data.as_ptr(),
                        left.col_stride as isize,
                        left.row_stride as isize,
                        right.data.as_ptr(),
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
            })
        });
        report(&name, ours, 2.0 * (m * n * k) as f64, baseline);
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
        let forward = fastest(BUDGET, || linear(pool, m, 1.0, &x, &w, None, black_box(&mut y), 0.0));
        report(&format!("linear {format:?} {m}x{n}x{k}"), forward, flops, None);
        let backward = fastest(BUDGET, || linear_dx(pool, m, 1.0, &y, &w, black_box(&mut x), 0.0));
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
        let seconds = fastest(BUDGET, || linear(pool, m, 1.0, &x, &w, None, black_box(&mut y), 0.0));
        println!(
            "{:40} {:9.1} {:9.1} {:9.1} GB/s",
            name,
            seconds * 1e6,
            2.0 * (m * n * k) as f64 / seconds * 1e-9,
            bytes.len() as f64 / seconds * 1e-9
        );
    }
}
