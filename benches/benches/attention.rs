//! Attention in GFLOP/s, as `torch_ops` counts them (half of all products for a causal mask), and over a
//! paged cache.
//!
//! `cargo bench -p swift-benches --bench attention -- [threads] [instruction set] [training | decode | prefill]`

use std::time::Duration;

use swift_benches::median;
use swift_kernels::attention::{CacheFormat, Gradients, Inputs, PAGE, Saved, Spec, Step, backward, cached, forward};
use swift_kernels::pool::Pool;

const BUDGET: Duration = Duration::from_millis(400);

fn main() {
    let (mut pool, mut only) = (Pool::new(1), String::new());
    for arg in std::env::args().skip(1).filter(|arg| arg != "--bench") {
        if let Ok(threads) = arg.parse() {
            pool = Pool::with_isa(threads, pool.isa());
        } else if let Ok(isa) = arg.parse() {
            pool = Pool::with_isa(pool.threads(), isa);
        } else {
            only = arg;
        }
    }
    let wanted = |name: &str| only.is_empty() || only == name;
    println!("{} threads, {}", pool.threads(), pool.isa());
    if wanted("training") {
        println!("{:28} {:>12} {:>12}", "causal", "GFLOP/s", "with back");
        for [heads, n, dim] in [[9, 1024, 64], [14, 2048, 64], [4, 2048, 256]] {
            training(&pool, heads, n, dim);
        }
    }
    if wanted("decode") {
        println!("{:28} {:>12} {:>12}", "one token, heads x size", "us", "GB/s");
        for (sequences, heads, kv_heads, dim) in [(1, 9, 3, 64), (1, 4, 1, 256), (16, 9, 3, 64), (16, 14, 2, 64)] {
            for context in [512, 2048, 8192] {
                for format in CacheFormat::ALL {
                    decode(&pool, spec(heads, kv_heads, dim), sequences, context, format);
                }
            }
        }
    }
    if wanted("prefill") {
        println!("{:28} {:>12} {:>12}", "512 rows behind 1536", "us", "GFLOP/s");
        for (heads, kv_heads, dim) in [(9, 3, 64), (14, 2, 64), (4, 1, 256)] {
            for format in CacheFormat::ALL {
                prefill(&pool, spec(heads, kv_heads, dim), format);
            }
        }
    }
}

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 7919 % 1000) as f32 * 1e-3 - 0.5).collect()
}

fn spec(heads: usize, kv_heads: usize, dim: usize) -> Spec {
    let scale = (dim as f32).sqrt().recip();
    let (causal, window, chunk, pinned, softcap) = (true, None, None, 0, None);
    Spec { heads, kv_heads, head_dim: dim, value_dim: dim, scale, causal, window, chunk, pinned, softcap }
}

fn training(pool: &Pool, heads: usize, n: usize, dim: usize) {
    let spec = spec(heads, heads, dim);
    let q = values(heads * n * dim);
    let x = Inputs { q: &q, k: &q, v: &q, segments: &vec![0; n], sinks: None, bias: None };
    let (mut o, mut lse) = (vec![0.0; q.len()], vec![0.0; heads * n]);
    let there = median(BUDGET, || forward(pool, &spec, &x, &mut o, &mut lse));
    let mut d = [(); 3].map(|()| vec![0.0; q.len()]);
    let back = median(BUDGET, || {
        let [d_q, d_k, d_v] = &mut d;
        let gradients = Gradients { d_q, d_k, d_v, d_sinks: None, d_bias: None };
        backward(pool, &spec, &x, &Saved { o: &o, lse: &lse, d_o: &q }, gradients);
    });
    let square = (heads * n * n * dim) as f64 * 1e-9;
    println!("{:28} {:12.1} {:12.1}", format!("{heads} x {n} x {dim}"), 2.0 * square / there, 7.0 * square / (there + back));
}

/// Seconds of one step: `rows` new tokens of each of some sequences, at the end of as many positions.
fn step(pool: &Pool, spec: &Spec, sequences: usize, context: usize, rows: usize, format: CacheFormat) -> f64 {
    let (dim, columns, n) = (spec.head_dim, context / PAGE, sequences * rows);
    let (q, k) = (values(n * spec.heads * dim), values(n * spec.kv_heads * dim));
    // Pages of a cache that was filled by turns lie apart.
    let table: Vec<i32> = (0..sequences * columns).map(|i| (i % columns * sequences + i / columns) as i32).collect();
    let mut caches = [(); 2].map(|()| vec![0_u32; sequences * columns * spec.kv_heads * format.head_words(dim)]);
    let positions: Vec<i32> = (0..n).map(|i| (context - rows + i % rows) as i32).collect();
    let slots: Vec<i32> = (0..n).map(|i| (i / rows) as i32).collect();
    let step = Step { q: &q, k: &k, v: &k, slots: &slots, positions: &positions, table: &table, columns, sinks: None };
    let mut o = vec![0.0; q.len()];
    let [k_cache, v_cache] = &mut caches;
    median(BUDGET, || cached(pool, spec, &step, format, k_cache, v_cache, &mut o).expect("all pages are there"))
}

fn decode(pool: &Pool, spec: Spec, sequences: usize, context: usize, format: CacheFormat) {
    let seconds = step(pool, &spec, sequences, context, 1, format);
    let bytes = 8 * sequences * context / PAGE * spec.kv_heads * format.head_words(spec.head_dim);
    let Spec { heads, kv_heads, head_dim, .. } = spec;
    let name = format!("{sequences} x {context}, {heads} / {kv_heads} x {head_dim} {format:?}");
    println!("{name:28} {:12.1} {:12.1}", seconds * 1e6, bytes as f64 / seconds * 1e-9);
}

fn prefill(pool: &Pool, spec: Spec, format: CacheFormat) {
    let (rows, context) = (512, 2048);
    let seconds = step(pool, &spec, 1, context, rows, format);
    let seen = rows * (context - rows) + rows * rows / 2;
    let Spec { heads, kv_heads, head_dim, .. } = spec;
    let name = format!("{heads} / {kv_heads} x {head_dim} {format:?}");
    println!("{name:28} {:12.1} {:12.1}", seconds * 1e6, (4 * heads * head_dim * seen) as f64 / seconds * 1e-9);
}
