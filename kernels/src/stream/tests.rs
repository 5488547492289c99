//! Tiles of every place and length, and kernels whose results are stored past the caches beside the same ones whose are not.

use super::*;
use crate::elementwise::{self, Binary, Broadcast, Instr, Operand, Program, Unary};
use crate::glu::{Gate, glu, glu_bwd};
use crate::layout::{self, Base};
use crate::pool::Pool;
use crate::rope::{Layout, Rope, rope};
use crate::{norm, reduce};

#[test]
fn every_place_and_length() {
    let src: Vec<f32> = (0..200u16).map(f32::from).collect();
    for isa in Isa::available() {
        for start in 0..17 {
            for len in [0, 1, 5, 16, 33, 100, 180] {
                let mut out = vec![-1.0; 200];
                // SAFETY: both have `start + len` elements.
                unsafe { copy(isa, src.as_ptr(), out.as_mut_ptr().add(start), len, src.as_ptr()) };
                fence();
                assert!(out[start..start + len] == src[..len] && out[..start].iter().all(|&x| x == -1.0));
                assert!(out[start + len..].iter().all(|&x| x == -1.0), "{start} {len} at {isa}");
            }
        }
    }
}

const ROWS: usize = 150;
const COLS: usize = 112;
const LEN: usize = ROWS * COLS;

/// Results at the beginning of a line are large, those one further are not.
#[track_caller]
fn same_wherever_it_lies(name: &str, pool: &Pool, run: &dyn Fn(&mut [f32])) {
    let results = [0, 1].map(|offset| {
        let mut buffer = vec![f32::NAN; LEN + 32];
        let start = buffer.as_ptr().align_offset(64) + offset;
        let out = &mut buffer[start..][..LEN];
        assert_eq!(is_large(pool.isa(), LEN, out.as_ptr(), &[]), offset == 0 && pool.isa() != Isa::Scalar);
        run(out);
        out.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
    });
    assert!(results[0] == results[1], "{name} at {}", pool.isa());
}

#[test]
fn kernels_give_the_same_bits() {
    let [x, y, z] = [1, 2, 3].map(|seed| {
        let mut x = vec![0.0; LEN];
        crate::random::normal(&Pool::new(1), seed, 0, 0, &mut x);
        x
    });
    let w = &y[..COLS];
    let inv = vec![0.5; ROWS];
    let order: Vec<i32> = (0..ROWS as i32).map(|i| i * 7 % 40 - 1).collect();
    let inv_freq: Vec<f32> = (0..8).map(|i| 0.5f32.powi(i)).collect();
    let programs = [
        // One instruction of each kind, and a chain with a broadcast and a further result.
        vec![Instr::Load { input: 0 }, Instr::Unary(Unary::Silu, 0)],
        vec![Instr::Load { input: 0 }, Instr::Load { input: 1 }, Instr::Binary(Binary::Max, 0, 1)],
        vec![Instr::Load { input: 0 }, Instr::Load { input: 1 }, Instr::Select(0, 1, 0)],
        vec![Instr::Load { input: 0 }, Instr::Unary(Unary::Sin, 0)],
        vec![
            Instr::Load { input: 0 },
            Instr::Load { input: 2 },
            Instr::Const(1.5),
            Instr::Binary(Binary::Mul, 0, 2),
            Instr::Unary(Unary::Tanh, 3),
            Instr::Binary(Binary::Add, 4, 1),
        ],
    ];
    for pool in Isa::available().map(|isa| Pool::with_isa(2, isa)) {
        for instrs in &programs {
            let last = instrs.len() as u16 - 1;
            let inputs = vec![Broadcast::Full, Broadcast::Full, Broadcast::Col];
            let operands = [Operand::F32(&x), Operand::F32(&y), Operand::F32(w)];
            let program = Program { instrs: instrs.clone(), inputs: inputs.clone(), outputs: vec![last] };
            same_wherever_it_lies("elementwise", &pool, &|out| {
                elementwise::run(&pool, &program, ROWS, COLS, &operands, &mut [out])
            });
            let program = Program { instrs: instrs.clone(), inputs, outputs: vec![last, last - 1] };
            same_wherever_it_lies("first of two", &pool, &|out| {
                elementwise::run(&pool, &program, ROWS, COLS, &operands, &mut [out, &mut vec![0.0; LEN]]);
            });
            same_wherever_it_lies("second of two", &pool, &|out| {
                elementwise::run(&pool, &program, ROWS, COLS, &operands, &mut [&mut vec![0.0; LEN], out]);
            });
        }
        for f in Gate::ALL {
            same_wherever_it_lies("glu", &pool, &|out| glu(&pool, f, &x, &y, out));
            same_wherever_it_lies("d_gate", &pool, &|out| glu_bwd(&pool, f, &x, &y, &z, out, &mut vec![0.0; LEN]));
            same_wherever_it_lies("d_up", &pool, &|out| glu_bwd(&pool, f, &x, &y, &z, &mut vec![0.0; LEN], out));
        }
        same_wherever_it_lies("norm", &pool, &|out| {
            norm::rms_norm(&pool, ROWS, COLS, &x, Some(w), 1e-5, true, out, &mut inv.clone());
        });
        same_wherever_it_lies("norm dx", &pool, &|out| norm::rms_norm_dx(&pool, ROWS, COLS, &x, None, &inv, &y, false, out));
        same_wherever_it_lies("softmax", &pool, &|out| reduce::softmax(&pool, ROWS, COLS, &x, out));
        same_wherever_it_lies("softmax dx", &pool, &|out| reduce::softmax_dx(&pool, ROWS, COLS, &x, &y, out));
        for layout in [Layout::Halves, Layout::Interleaved] {
            let (rotary_dim, inv_freq, attn_scale) = (16, &inv_freq[..], 1.0);
            let turn =
                Rope { n: ROWS, heads: 4, head_dim: 28, rotary_dim, layout, inv_freq, attn_scale, inverse: false, rows: &[] };
            same_wherever_it_lies("rope", &pool, &|out| rope(&pool, turn, &order, &x, out));
        }
        same_wherever_it_lies("gather", &pool, &|out| layout::gather_rows(&pool, ROWS, COLS, &order, &x, out));
        for base in [Base::Zero, Base::Other(&y)] {
            same_wherever_it_lies("scatter", &pool, &|out| layout::scatter_add_rows(&pool, ROWS, COLS, base, &order, &x, out));
        }
    }
}
