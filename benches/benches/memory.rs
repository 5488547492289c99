//! Kernels bound by memory in GB/s, beside reading and copying in turn with them: what must be read and written once is counted, nothing else.
//!
//! `cargo bench -p swift-benches --bench memory -- [threads] [instruction set] [megabytes of an array] [part of a name]`
//!
//! Arrays of a quarter of a megabyte and less measure arithmetic in the cache. A number above 16 is a size.

use std::hint::black_box;
use std::time::Duration;

use swift_benches::{beside, median};
use swift_kernels::ceiling::{Stream, Streams};
use swift_kernels::elementwise::{self, Binary, Broadcast, Instr, Operand, Program, Unary};
use swift_kernels::glu::{Gate, glu, glu_bwd};
use swift_kernels::layout::{self, Base};
use swift_kernels::pages::prefer_huge;
use swift_kernels::pool::Pool;
use swift_kernels::reduce::{Reduce, segment_reduce, softmax, softmax_dx};
use swift_kernels::rope::{Layout, Rope, rope};
use swift_kernels::{norm, topk};

const BUDGET: Duration = Duration::from_millis(500);

/// Columns of every array.
const COLS: usize = 1024;

/// Bytes of arrays up to which nothing is run in turn with a case: it would find the cache empty.
const CACHED: usize = 1 << 18;

struct Bench<'a> {
    pool: &'a Pool,
    filter: String,
    rows: usize,
    streams: Streams,
}

/// `len` numbers behind as many as it takes to begin with a whole cache line, as the engine's buffers do.
fn array(len: usize) -> (Vec<f32>, usize) {
    let mut values = Vec::with_capacity(len + 16);
    prefer_huge(values.spare_capacity_mut());
    values.extend((0..len + 16).map(|i| (i * 7919 % 1000) as f32 * 1e-3 - 0.5));
    let first = values.as_ptr().align_offset(64);
    (values, first)
}

impl Bench<'_> {
    /// A case that reads and writes so many arrays.
    fn case(&mut self, name: &str, arrays: usize, body: impl FnMut()) {
        self.streamed(name, arrays, Stream::Copy, body);
    }

    fn streamed(&mut self, name: &str, arrays: usize, stream: Stream, body: impl FnMut()) {
        if name.contains(&self.filter) {
            let bytes = (arrays * self.rows * COLS * 4) as f64;
            if self.rows * COLS * 4 <= CACHED {
                println!("{name:24} {:8.1} GB/s", bytes * 1e-9 / median(BUDGET, body));
                return;
            }
            let (pool, streams) = (self.pool, &mut self.streams);
            let (seconds, share) = beside(BUDGET, bytes, || streams.rate(pool, stream), body);
            println!("{name:24} {:8.1} GB/s, {:5.1}%", bytes * 1e-9 / seconds, 100.0 * share);
        }
    }

    fn all(&mut self) {
        let len = self.rows * COLS;
        let arrays = [(); 3].map(|()| array(len));
        let [x, y, z] = arrays.each_ref().map(|(values, first)| &values[*first..][..len]);
        let mut results = [(); 2].map(|()| array(len));
        let [out, other] = results.each_mut().map(|(values, first)| &mut values[*first..][..len]);
        let pool = self.pool;
        let rows = self.rows;
        let program = |instrs: &[Instr], inputs: usize| {
            let instrs = (0..inputs as u16).map(|input| Instr::Load { input }).chain(instrs.iter().copied()).collect::<Vec<_>>();
            Program { outputs: vec![instrs.len() as u16 - 1], instrs, inputs: vec![Broadcast::Full; inputs] }
        };
        let mut chain = vec![Instr::Const(1.01)];
        for (i, op) in (0u16..).zip([Unary::Abs, Unary::Relu, Unary::Neg, Unary::Abs]) {
            chain.push(Instr::Binary(Binary::Mul, if i == 0 { 0 } else { 2 * i + 1 }, 1));
            chain.push(Instr::Unary(op, 2 * i + 2));
        }
        let chain = program(&chain, 1);
        self.case("elementwise (8 ops)", 2, || {
            elementwise::run(pool, &chain, 1, len, &[Operand::F32(x)], &mut [black_box(&mut *out)]);
        });
        for op in [Unary::Neg, Unary::Silu, Unary::GeluErf] {
            let program = program(&[Instr::Unary(op, 0)], 1);
            self.case(&format!("{op:?}"), 2, || {
                elementwise::run(pool, &program, 1, len, &[Operand::F32(x)], &mut [black_box(&mut *out)]);
            });
        }
        let add = program(&[Instr::Binary(Binary::Add, 0, 1)], 2);
        self.case("Add", 3, || {
            elementwise::run(pool, &add, 1, len, &[Operand::F32(x), Operand::F32(y)], &mut [black_box(&mut *out)]);
        });
        for f in Gate::ALL {
            self.case(&format!("glu {f:?}"), 3, || glu(pool, f, x, y, black_box(&mut *out)));
            self.case(&format!("glu backward {f:?}"), 5, || {
                glu_bwd(pool, f, x, y, z, black_box(&mut *out), black_box(&mut *other));
            });
        }
        let mut inv = vec![1.0; rows];
        self.case("rms-norm", 2, || {
            norm::rms_norm(pool, rows, COLS, x, Some(&y[..COLS]), 1e-5, false, black_box(&mut *out), &mut inv);
        });
        self.case("rms-norm-dx", 3, || {
            norm::rms_norm_dx(pool, rows, COLS, x, Some(&y[..COLS]), &inv, z, false, black_box(&mut *out));
        });
        self.case("softmax", 2, || softmax(pool, rows, COLS, x, black_box(&mut *out)));
        self.case("softmax-dx", 3, || softmax_dx(pool, rows, COLS, x, y, black_box(&mut *out)));
        let inv_freq: Vec<f32> = (0..32).map(|i| 1e4f32.powf(-(i as f32) / 32.0)).collect();
        let positions: Vec<i32> = (0..rows as i32).map(|i| i % 2048).collect();
        for layout in [Layout::Halves, Layout::Interleaved] {
            let (inverse, heads) = (false, COLS / 64);
            let turn = Rope {
                n: rows,
                heads,
                head_dim: 64,
                rotary_dim: 64,
                layout,
                inv_freq: &inv_freq,
                attn_scale: 1.0,
                inverse,
                rows: &[],
            };
            self.case(&format!("rope {layout:?}"), 2, || rope(pool, turn, &positions, x, black_box(&mut *out)));
        }
        let order: Vec<i32> = (0..rows).map(|i| (i * 7919 % rows) as i32).collect();
        self.case("gather-rows", 2, || layout::gather_rows(pool, rows, COLS, &order, x, black_box(&mut *out)));
        self.case("scatter-add-rows", 3, || {
            layout::scatter_add_rows(pool, rows, COLS, Base::Other(x), &order, y, black_box(&mut *out));
        });
        self.case("embed-dw", 2, || layout::scatter_add_rows(pool, rows, COLS, Base::Zero, &order, y, black_box(&mut *out)));
        let segments: Vec<i32> = (0..rows as i32).map(|i| i / 512).collect();
        let count = rows.div_ceil(512);
        self.streamed("segment-sum", 1, Stream::Read, || {
            segment_reduce(pool, Reduce::Sum, rows, COLS, x, &segments, count, black_box(&mut out[..count * COLS]));
        });
        let mut best = vec![0; rows * 8];
        self.streamed("top-k (8)", 1, Stream::Read, || topk::top_k(pool, rows, COLS, 8, x, black_box(&mut best)));
    }
}

fn main() {
    let (mut pool, mut filter, mut rows) = (Pool::new(1), String::new(), 65536);
    for arg in std::env::args().skip(1).filter(|arg| arg != "--bench") {
        match (arg.parse::<f64>(), arg.parse()) {
            (Ok(threads), _) if (1.0..=16.0).contains(&threads) && threads.fract() == 0.0 => {
                pool = Pool::with_isa(threads as usize, pool.isa());
            }
            (Ok(megabytes), _) => rows = ((megabytes * 1e6) as usize / (4 * COLS)).max(1),
            (_, Ok(isa)) => pool = Pool::with_isa(pool.threads(), isa),
            _ => filter = arg,
        }
    }
    let mut streams = Streams::new(&pool);
    let [read, copy, near] = [Stream::Read, Stream::Copy, Stream::CopyNear].map(|stream| streams.rate(&pool, stream) * 1e-9);
    println!(
        "{} threads, {}, arrays of {:.3} MB; {read:.1} GB/s read, {copy:.1} GB/s read and written ({near:.1} on 64 MB)",
        pool.threads(),
        pool.isa(),
        rows as f64 * COLS as f64 * 4e-6,
    );
    Bench { pool: &pool, filter, rows, streams }.all();
}
