//! Attention in GFLOP/s, as `torch_ops` counts them: half of all products for a causal mask.
//!
//! `cargo bench -p swift-benches --bench attention -- [threads] [instruction set]`

use std::time::Duration;

use swift_benches::fastest;
use swift_kernels::attention::{CacheFormat, Gradients, Inputs, PAGE, Saved, Spec, Step, backward, cached, forward};
use swift_kernels::pool::Pool;

const BUDGET: Duration = Duration::from_millis(400);

fn main() {
    let mut pool = Pool::new(1);
    for arg in std::env::args().skip(1).filter(|arg| arg != "--bench") {
        if let Ok(threads) = arg.parse() {
            pool = Pool::with_isa(threads, pool.isa());
        } else if let Ok(isa) = arg.parse() {
            pool = Pool::with_isa(pool.threads(), isa);
        }
    }
    println!("{} threads, {}", pool.threads(), pool.isa());
    println!("{:24} {:>12} {:>12}", "causal", "GFLOP/s", "with back");
    for [heads, n, dim] in [[9, 1024, 64], [14, 2048, 64], [4, 2048, 256]] {
        training(&pool, heads, n, dim);
    }
    println!("{:24} {:>12} {:>12}", "one token, 9 / 3 x 64", "us", "GB/s");
    for context in [512, 4096, 32768] {
        for format in CacheFormat::ALL {
            decode(&pool, context, format);
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
    let there = fastest(BUDGET, || forward(pool, &spec, &x, &mut o, &mut lse));
    let mut d = [(); 3].map(|()| vec![0.0; q.len()]);
    let back = fastest(BUDGET, || {
        let [d_q, d_k, d_v] = &mut d;
        let gradients = Gradients { d_q, d_k, d_v, d_sinks: None, d_bias: None };
        backward(pool, &spec, &x, &Saved { o: &o, lse: &lse, d_o: &q }, gradients);
    });
    let square = (heads * n * n * dim) as f64 * 1e-9;
    println!("{:24} {:12.1} {:12.1}", format!("{heads} x {n} x {dim}"), 2.0 * square / there, 7.0 * square / (there + back));
}

fn decode(pool: &Pool, context: usize, format: CacheFormat) {
    let spec = spec(9, 3, 64);
    let (q, k, columns) = (values(9 * 64), values(3 * 64), context / PAGE);
    let table: Vec<i32> = (0..columns as i32).collect();
    let mut caches = [(); 2].map(|()| vec![0_u32; columns * 3 * format.head_words(64)]);
    let bytes = 8.0 * caches[0].len() as f64;
    let positions = [context as i32 - 1];
    let step = Step { q: &q, k: &k, v: &k, slots: &[0], positions: &positions, table: &table, columns, sinks: None };
    let mut o = vec![0.0; q.len()];
    let [k_cache, v_cache] = &mut caches;
    let seconds = fastest(BUDGET, || cached(pool, &spec, &step, format, k_cache, v_cache, &mut o).expect("all pages are there"));
    println!("{:24} {:12.1} {:12.1}", format!("{context} {format:?}"), seconds * 1e6, bytes / seconds * 1e-9);
}
