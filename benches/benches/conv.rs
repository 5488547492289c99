//! Convolutions in GFLOP/s: forward and both gradients, of speech encoders, patch embeddings and residual networks.
//!
//! `cargo bench -p swift-benches --bench conv -- [threads] [instruction set] [part of a name]`
//!
//! A figure is the median of its runs and counts two operations for each weight of a filter, place and filter, whatever is padding.

use std::hint::black_box;
use std::time::Duration;

use swift_benches::median;
use swift_kernels::ceiling::Ceilings;
use swift_kernels::conv::{Conv, conv2d, conv2d_dw, conv2d_dx};
use swift_kernels::pool::Pool;

const BUDGET: Duration = Duration::from_millis(250);

/// Square filters over a square image, or filters over a sequence where the image is one line high.
fn conv(channels: [usize; 2], input: [usize; 2], size: usize, stride: usize, zeros: usize) -> Conv {
    let both = |along: usize, flat: usize| if input[0] == 1 { [flat, along] } else { [along, along] };
    Conv {
        batch: 1,
        groups: 1,
        in_channels: channels[0],
        out_channels: channels[1],
        input,
        kernel: both(size, 1),
        stride: both(stride, 1),
        pad_lo: both(zeros, 0),
        pad_hi: both(zeros, 0),
        dilation: [1, 1],
    }
}

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 7919 % 1000) as f32 * 1e-3 - 0.5).collect()
}

fn main() {
    let (mut pool, mut filter) = (Pool::new(1), String::new());
    for arg in std::env::args().skip(1).filter(|arg| arg != "--bench") {
        match (arg.parse(), arg.parse()) {
            (Ok(threads), _) => pool = Pool::with_isa(threads, pool.isa()),
            (_, Ok(isa)) => pool = Pool::with_isa(pool.threads(), isa),
            _ => filter = arg,
        }
    }
    let ceiling = Ceilings::measure(&pool).flops;
    println!("{} threads, {}; {:.0} GFLOP/s of multiply-adds", pool.threads(), pool.isa(), ceiling * 1e-9);
    let cases = [
        ("speech 80-384, 3000", conv([80, 384], [1, 3000], 3, 1, 1)),
        ("speech 80-384, 3000 by 2", conv([80, 384], [1, 3000], 3, 2, 1)),
        ("speech 384-384, 3000 by 2", conv([384, 384], [1, 3000], 3, 2, 1)),
        ("patches 3-768, 224 by 16", conv([3, 768], [224, 224], 16, 16, 0)),
        ("image 64-64, 56", conv([64, 64], [56, 56], 3, 1, 1)),
    ];
    for (name, conv) in cases.into_iter().filter(|(name, _)| name.contains(&filter)) {
        let (x, w, dy, bias) = (values(conv.x_len()), values(conv.w_len()), values(conv.y_len()), values(conv.out_channels));
        let (mut y, mut dx, mut dw) = (dy.clone(), x.clone(), w.clone());
        let work = 2.0 * (conv.w_len() * conv.y_len() / conv.out_channels) as f64;
        let report = |what: &str, seconds: f64| {
            let rate = work / seconds;
            println!("{name:28} {what:8} {:8.1} GFLOP/s {:4.0}%  {:8.3} ms", rate * 1e-9, 100.0 * rate / ceiling, seconds * 1e3);
        };
        report("forward", median(BUDGET, || conv2d(&pool, &conv, &x, &w, Some(&bias), black_box(&mut y))));
        report("dx", median(BUDGET, || conv2d_dx(&pool, &conv, &dy, &w, black_box(&mut dx))));
        report("dw", median(BUDGET, || conv2d_dw(&pool, &conv, &dy, &x, black_box(&mut dw))));
    }
}
