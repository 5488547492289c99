//! Parity with the scalar operations, tiling, aliasing and validation.

use super::scalar::{binary_value, unary_value};
use super::*;

fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut x = vec![0.0; len];
    crate::random::normal(&Pool::new(1), seed, 0, 0, &mut x);
    x.iter_mut().enumerate().for_each(|(i, x)| *x *= [0.01, 1.0, 4.0, 30.0][i % 4]);
    let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 1.0, -1.0, 1e-40, 3e38, 0.5, 1.5, 2e7];
    for (i, &odd) in odd.iter().cycle().take(len / 3).enumerate() {
        x[(i * 3 + seed as usize * (i / 12 + 1)) % len] = odd;
    }
    x
}

fn pools() -> impl Iterator<Item = Pool> {
    Isa::available().map(|isa| Pool::with_isa(2, isa))
}

#[test]
fn unary_operations_match_scalar() {
    let x = values(1337, 1);
    for pool in pools() {
        for op in Unary::ALL {
            let program = Program {
                instrs: vec![Instr::Load { input: 0 }, Instr::Unary(op, 0)],
                inputs: vec![Broadcast::Full],
                outputs: vec![1],
            };
            let mut out = vec![0.0; x.len()];
            run(&pool, &program, 1, x.len(), &[Operand::F32(&x)], &mut [&mut out]);
            for (&x, &got) in x.iter().zip(&out) {
                let want = unary_value(op, x);
                // Tails that vanish, and functions whose error is not relative: see the module.
                let scale = match op {
                    Unary::Sin | Unary::Cos => 1.0,
                    Unary::GeluErf => x.abs().max(f32::MIN_POSITIVE),
                    Unary::GeluTanh | Unary::Silu | Unary::Sigmoid => (want.abs() * x.abs().max(1.0) * 5.0).max(1.2e-38),
                    _ => want.abs().max(f32::MIN_POSITIVE),
                };
                let same = got == want || got.is_nan() && want.is_nan() || (got - want).abs() <= 2e-6 * scale;
                assert!(same, "{op:?}({x}) = {got}, not {want}, at {}", pool.isa());
            }
        }
    }
}

#[test]
fn binary_operations_match_scalar_exactly() {
    let (a, mut b) = (values(1337, 2), values(1337, 3));
    b[..100].copy_from_slice(&a[..100]);
    for pool in pools() {
        for op in Binary::ALL {
            let program = Program {
                instrs: vec![Instr::Load { input: 0 }, Instr::Load { input: 1 }, Instr::Binary(op, 0, 1)],
                inputs: vec![Broadcast::Full; 2],
                outputs: vec![2],
            };
            let mut out = vec![0.0; a.len()];
            run(&pool, &program, 7, 191, &[Operand::F32(&a), Operand::F32(&b)], &mut [&mut out]);
            for i in 0..a.len() {
                let want = binary_value(op, a[i], b[i]);
                let same = out[i] == want || out[i].is_nan() && want.is_nan();
                assert!(same, "{op:?}({}, {}) = {}, not {want}", a[i], b[i], out[i]);
            }
        }
    }
}

/// `y = select(mask, silu(x col) + row, scalar + 2)`, `z = x` with all kinds of operands.
fn mixed() -> Program {
    Program {
        instrs: vec![
            Instr::Load { input: 0 },
            Instr::Load { input: 1 },
            Instr::Load { input: 2 },
            Instr::Load { input: 3 },
            Instr::Load { input: 4 },
            Instr::Const(2.0),
            Instr::Binary(Binary::Add, 3, 5),
            Instr::Binary(Binary::Mul, 0, 1),
            Instr::Unary(Unary::Relu, 7),
            Instr::Binary(Binary::Add, 8, 2),
            Instr::Select(4, 9, 6),
        ],
        inputs: vec![Broadcast::Full, Broadcast::Col, Broadcast::Row, Broadcast::Scalar, Broadcast::Full],
        outputs: vec![10, 0, 6],
    }
}

#[test]
fn broadcasts_over_ragged_shapes() {
    for (rows, cols) in [(1, 1), (1, 5000), (5000, 1), (37, 9), (3, 511), (5, 513), (130, 300), (2, 40_000)] {
        let x: Vec<f32> = (0..rows * cols).map(|i| i as f32 - 50.0).collect();
        let col: Vec<f32> = (0..cols).map(|i| (i % 7) as f32 - 3.0).collect();
        let row: Vec<i32> = (0..rows as i32).collect();
        let mask: Vec<i32> = (0..(rows * cols) as i32).map(|i| i % 3 - 1).collect();
        let inputs = [Operand::F32(&x), Operand::F32(&col), Operand::I32(&row), Operand::F32(&[5.0]), Operand::I32(&mask)];
        for pool in pools() {
            let mut out = vec![vec![0.0; rows * cols]; 3];
            let mut views: Vec<&mut [f32]> = out.iter_mut().map(Vec::as_mut_slice).collect();
            run(&pool, &mixed(), rows, cols, &inputs, &mut views);
            for i in 0..rows * cols {
                let (r, c) = (i / cols, i % cols);
                let want = if mask[i] != 0 { (x[i] * col[c]).max(0.0) + row[r] as f32 } else { 7.0 };
                assert_eq!(out[0][i], want, "{rows} {cols} {i}");
                assert_eq!((out[1][i], out[2][i]), (x[i], 7.0));
            }
        }
    }
}

#[test]
fn in_place_and_swapped() {
    // a, b = b, a + b: each output overwrites the input that the other still reads.
    let program = Program {
        instrs: vec![Instr::Load { input: 0 }, Instr::Load { input: 1 }, Instr::Binary(Binary::Add, 0, 1)],
        inputs: vec![Broadcast::Full; 2],
        outputs: vec![1, 2],
    };
    for pool in pools() {
        let len = 40_001;
        let mut a: Vec<f32> = (0..len).map(|i| i as f32).collect();
        let mut b = vec![1.0; len];
        let (pa, pb) = (a.as_mut_ptr(), b.as_mut_ptr());
        // SAFETY: the program is valid, both buffers are full and each aliases itself only.
        unsafe { run_raw(&pool, &program, 1, len, &[OperandPtr::F32(pa), OperandPtr::F32(pb)], &[pa, pb]) };
        assert!(a.iter().all(|&a| a == 1.0));
        assert!(b.iter().enumerate().all(|(i, &b)| b == i as f32 + 1.0));
    }
}

#[test]
fn constants_alone_and_long_chains() {
    let mut instrs = vec![Instr::Const(1.0), Instr::Load { input: 0 }];
    for i in 0..60 {
        instrs.push(Instr::Binary(Binary::Add, i % 2, i + 1));
    }
    let program = Program { instrs, inputs: vec![Broadcast::Full], outputs: vec![0, 61] };
    assert!(Plan::new(&program).slots < 8);
    let (mut ones, mut sums) = (vec![0.0; 700], vec![0.0; 700]);
    run(&Pool::new(1), &program, 1, 700, &[Operand::F32(&[2.0; 700])], &mut [&mut ones, &mut sums]);
    assert!(ones.iter().all(|&x| x == 1.0) && sums.iter().all(|&x| x == 2.0 + 30.0 + 60.0));
}

#[test]
fn invalid_programs_are_named() {
    let program = |instrs, outputs| Program { instrs, inputs: vec![Broadcast::Full], outputs };
    let error = program(vec![Instr::Unary(Unary::Neg, 0)], vec![0]).validate();
    assert_eq!(error, Err(InvalidProgram::Register { instr: 0, register: 0 }));
    let error = program(vec![Instr::Load { input: 1 }], vec![0]).validate();
    assert_eq!(error, Err(InvalidProgram::Input { instr: 0, input: 1 }));
    let error = program(vec![Instr::Load { input: 0 }], vec![1]).validate();
    assert_eq!(error, Err(InvalidProgram::Output { register: 1 }));
}

/// Named after the symptom: a constant that followed a freed register was overwritten by the second tile.
#[test]
fn constants_survive_every_tile() {
    let program = Program {
        instrs: vec![
            Instr::Load { input: 0 },
            Instr::Unary(Unary::Neg, 0),
            Instr::Unary(Unary::Abs, 1),
            Instr::Const(3.0),
            Instr::Binary(Binary::Mul, 2, 3),
            Instr::Unary(Unary::Neg, 4),
        ],
        inputs: vec![Broadcast::Full],
        outputs: vec![5],
    };
    let x: Vec<f32> = (0..4 * TILE).map(|i| i as f32).collect();
    let mut out = vec![0.0; x.len()];
    run(&Pool::new(1), &program, 4, TILE, &[Operand::F32(&x)], &mut [&mut out]);
    assert!(x.iter().zip(&out).all(|(x, y)| *y == -3.0 * x));
}

/// Passes of simple operations: constants, broadcasts and integers as operands, reversed ones, values read twice, and more operations
/// than a pass has, at every level and past the caches.
#[test]
fn passes_are_the_operations_one_by_one() {
    let mut instrs = vec![
        Instr::Load { input: 0 },
        Instr::Const(1.5),
        Instr::Binary(Binary::Mul, 1, 0),
        Instr::Unary(Unary::Abs, 2),
        Instr::Load { input: 1 },
        Instr::Binary(Binary::Sub, 3, 4),
        Instr::Load { input: 2 },
        Instr::Binary(Binary::Min, 5, 6),
        Instr::Binary(Binary::Sub, 1, 7),
        Instr::Unary(Unary::Neg, 8),
        Instr::Binary(Binary::Div, 9, 1),
        Instr::Binary(Binary::Mul, 10, 10),
        Instr::Unary(Unary::Relu, 11),
        Instr::Load { input: 3 },
        Instr::Binary(Binary::Max, 12, 13),
        Instr::Binary(Binary::Add, 0, 14),
    ];
    for _ in 0..40 {
        instrs.push(Instr::Unary(Unary::Neg, instrs.len() as u16 - 1));
    }
    let last = instrs.len() as u16 - 1;
    let inputs = vec![Broadcast::Full, Broadcast::Full, Broadcast::Col, Broadcast::Row];
    let program = Program { instrs, inputs, outputs: vec![last] };
    let plan = Plan::new(&program);
    assert!((0..=last.into()).all(|end| plan.passes.of(end).count() <= PASS) && plan.steps == 7, "{} passes", plan.steps);
    for (rows, cols) in [(1, 1), (3, 130), (5, 1000), (2, 8192)] {
        let x = values(rows * cols, 1);
        let y: Vec<i32> = (0..x.len() as i32).map(|i| i % 13 - 6).collect();
        let (col, row) = (values(cols, 2), values(rows, 3));
        let inputs = [Operand::F32(&x), Operand::I32(&y), Operand::F32(&col), Operand::F32(&row)];
        for pool in pools() {
            let mut out = vec![0.0; x.len()];
            run(&pool, &program, rows, cols, &inputs, &mut [&mut out]);
            for (i, &got) in out.iter().enumerate() {
                let least = ((1.5 * x[i]).abs() - y[i] as f32).min(col[i % cols]);
                let ratio = -(1.5 - least) / 1.5;
                let square = ratio * ratio;
                let want = x[i] + (if square < 0.0 { 0.0 } else { square }).max(row[i / cols]);
                assert!(got == want || got.is_nan() && want.is_nan(), "{i} of {rows} {cols}: {got} {want} at {}", pool.isa());
            }
        }
    }
}
