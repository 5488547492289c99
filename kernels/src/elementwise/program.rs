//! The program of a fused elementwise kernel: instructions, validation, and the plan of where
//! each register lives while a tile is computed.

use std::collections::HashSet;
use std::fmt;

/// Operations of one operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unary {
    /// `-x`.
    Neg,
    /// `|x|`.
    Abs,
    /// `e^x`.
    Exp,
    /// Natural logarithm.
    Log,
    /// `log(1 + x)`, exact near zero.
    Log1p,
    /// `e^x - 1`, exact near zero.
    Expm1,
    /// Square root.
    Sqrt,
    /// `1 / sqrt(x)`.
    Rsqrt,
    /// `1 / x`.
    Recip,
    /// Sine of radians.
    Sin,
    /// Cosine of radians.
    Cos,
    /// Hyperbolic tangent.
    Tanh,
    /// `1 / (1 + e^-x)`.
    Sigmoid,
    /// `x sigmoid(x)`.
    Silu,
    /// `x Phi(x)` by the error function.
    GeluErf,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// `max(x, 0)`; NaN stays NaN.
    Relu,
    /// `log(1 + e^x)`.
    Softplus,
    /// `-softplus(-x)`.
    LogSigmoid,
    /// Error function.
    Erf,
    /// Largest integer not above `x`.
    Floor,
    /// Nearest integer, ties to even.
    Round,
    /// -1, 0 or 1; zeros and NaN stay as they are.
    Sign,
    /// 1 if `x` is zero, else 0.
    Not,
    /// `x x`.
    Square,
    /// `x`.
    Copy,
}

impl Unary {
    /// All operations.
    pub const ALL: [Unary; 26] = [
        Unary::Neg,
        Unary::Abs,
        Unary::Exp,
        Unary::Log,
        Unary::Log1p,
        Unary::Expm1,
        Unary::Sqrt,
        Unary::Rsqrt,
        Unary::Recip,
        Unary::Sin,
        Unary::Cos,
        Unary::Tanh,
        Unary::Sigmoid,
        Unary::Silu,
        Unary::GeluErf,
        Unary::GeluTanh,
        Unary::Relu,
        Unary::Softplus,
        Unary::LogSigmoid,
        Unary::Erf,
        Unary::Floor,
        Unary::Round,
        Unary::Sign,
        Unary::Not,
        Unary::Square,
        Unary::Copy,
    ];
}

/// Operations of two operands. Comparisons and logic give 0 or 1; anything but 0 is true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Binary {
    /// `a + b`.
    Add,
    /// `a - b`.
    Sub,
    /// `a b`.
    Mul,
    /// `a / b`.
    Div,
    /// `a^b`.
    Pow,
    /// The smaller; a number beats NaN.
    Min,
    /// The larger; a number beats NaN.
    Max,
    /// Remainder of truncated division.
    Rem,
    /// `a == b`.
    Eq,
    /// `a != b`.
    Ne,
    /// `a < b`.
    Lt,
    /// `a <= b`.
    Le,
    /// `a > b`.
    Gt,
    /// `a >= b`.
    Ge,
    /// Both are true.
    And,
    /// At least one is true.
    Or,
}

impl Binary {
    /// All operations.
    pub const ALL: [Binary; 16] = [
        Binary::Add,
        Binary::Sub,
        Binary::Mul,
        Binary::Div,
        Binary::Pow,
        Binary::Min,
        Binary::Max,
        Binary::Rem,
        Binary::Eq,
        Binary::Ne,
        Binary::Lt,
        Binary::Le,
        Binary::Gt,
        Binary::Ge,
        Binary::And,
        Binary::Or,
    ];
}

/// One operation; number `i` of a program writes register `i`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Instr {
    /// Reads an input.
    Load {
        /// Index into [`Program::inputs`].
        input: u16,
    },
    /// A constant.
    Const(f32),
    /// An operation on a register.
    Unary(Unary, u16),
    /// An operation on two registers.
    Binary(Binary, u16, u16),
    /// The second register where the first is not 0, else the third.
    Select(u16, u16, u16),
}

/// How an input covers the `[rows, cols]` matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Broadcast {
    /// One value for every element.
    Full,
    /// One value for each row.
    Row,
    /// One value for each column.
    Col,
    /// One value.
    Scalar,
}

impl Broadcast {
    /// Elements of an input that covers `[rows, cols]`.
    pub fn len(self, rows: usize, cols: usize) -> usize {
        match self {
            Broadcast::Full => rows * cols,
            Broadcast::Row => rows,
            Broadcast::Col => cols,
            Broadcast::Scalar => 1,
        }
    }
}

/// A fused elementwise computation.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// Operations in order.
    pub instrs: Vec<Instr>,
    /// How each input is broadcast.
    pub inputs: Vec<Broadcast>,
    /// Registers that are written out in full.
    pub outputs: Vec<u16>,
}

/// Why a program cannot run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidProgram {
    /// Registers are numbered by 16 bits.
    TooLong {
        /// Number of instructions.
        instrs: usize,
    },
    /// An instruction reads a register that is not written before it.
    Register {
        /// The instruction.
        instr: usize,
        /// What it reads.
        register: u16,
    },
    /// An instruction loads an input that the program does not have.
    Input {
        /// The instruction.
        instr: usize,
        /// What it loads.
        input: u16,
    },
    /// An output names a register that no instruction writes.
    Output {
        /// The register.
        register: u16,
    },
}

impl fmt::Display for InvalidProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InvalidProgram::TooLong { instrs } => {
                write!(f, "elementwise program of {instrs} instructions is longer than 65536; split it")
            }
            InvalidProgram::Register { instr, register } => {
                write!(f, "elementwise instruction {instr} reads register {register}, which is not written before it")
            }
            InvalidProgram::Input { instr, input } => {
                write!(f, "elementwise instruction {instr} loads input {input}, which the program does not have")
            }
            InvalidProgram::Output { register } => {
                write!(f, "elementwise output names register {register}, which no instruction writes")
            }
        }
    }
}

impl std::error::Error for InvalidProgram {}

impl Program {
    /// Checks that every register and input that is named exists.
    pub fn validate(&self) -> Result<(), InvalidProgram> {
        if self.instrs.len() > usize::from(u16::MAX) + 1 {
            return Err(InvalidProgram::TooLong { instrs: self.instrs.len() });
        }
        for (instr, operation) in self.instrs.iter().enumerate() {
            if let Instr::Load { input } = *operation
                && usize::from(input) >= self.inputs.len()
            {
                return Err(InvalidProgram::Input { instr, input });
            }
            for register in operands(operation) {
                if usize::from(register) >= instr {
                    return Err(InvalidProgram::Register { instr, register });
                }
            }
        }
        match self.outputs.iter().find(|&&register| usize::from(register) >= self.instrs.len()) {
            Some(&register) => Err(InvalidProgram::Output { register }),
            None => Ok(()),
        }
    }
}

/// Registers that an instruction reads.
fn operands(instr: &Instr) -> impl Iterator<Item = u16> {
    let (registers, count) = match *instr {
        Instr::Load { .. } | Instr::Const(_) => ([0; 3], 0),
        Instr::Unary(_, x) => ([x, 0, 0], 1),
        Instr::Binary(_, a, b) => ([a, b, 0], 2),
        Instr::Select(cond, a, b) => ([cond, a, b], 3),
    };
    registers.into_iter().take(count)
}

/// Where the value of a register is while a tile is computed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Register {
    /// Its elements; of a register that is the same in every tile one number, [`super::LINE`] times.
    pub(super) data: *const f32,
    /// All ones, or zero for one number: places in a tile are taken with it.
    pub(super) mask: usize,
}

impl Register {
    /// Of no instruction.
    pub(super) const NONE: Register = Register { data: std::ptr::null(), mask: 0 };

    pub(super) fn new(data: *const f32, invariant: bool) -> Register {
        Register { data, mask: if invariant { 0 } else { usize::MAX } }
    }

    /// Where the elements from `i` on lie.
    ///
    /// # Safety
    /// The tile has an element `i`.
    #[inline(always)]
    pub(super) unsafe fn at(self, i: usize) -> *const f32 {
        // SAFETY: promised by the caller; one number lies at the beginning.
        unsafe { self.data.add(i & self.mask) }
    }
}

/// Where a register lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A tile of the scratch.
    Slot(usize),
    /// The memory of a full `f32` input, never copied.
    Input,
    /// Nowhere: it passes to the next instruction in vector registers.
    Joined,
    /// The memory of an output. Only the last instruction may write there at once: an earlier
    /// one could overwrite an aliased input that is still to be read.
    Output(usize),
}

/// Places of all registers; slots are reused after the last read.
pub(super) struct Plan {
    pub(super) places: Vec<Place>,
    /// Slot of an instruction whose place is [`Place::Input`], if the input turns out to be integers.
    pub(super) fallback: Vec<usize>,
    /// Instructions whose value is the same in every tile.
    pub(super) invariant: Vec<bool>,
    /// How instructions go together in one pass.
    pub(super) passes: Passes,
    pub(super) slots: usize,
    /// Tiles that are in use together: slots but those of one number, inputs that are read in place, and outputs.
    pub(super) live: usize,
    /// Passes over every tile.
    pub(super) steps: usize,
}

impl Plan {
    /// Plans a valid program.
    pub(super) fn new(program: &Program) -> Plan {
        let count = program.instrs.len();
        let mut last_read: Vec<usize> = (0..count).collect();
        let mut invariant = vec![false; count];
        for (index, instr) in program.instrs.iter().enumerate() {
            invariant[index] = match *instr {
                Instr::Load { input } => program.inputs[usize::from(input)] == Broadcast::Scalar,
                _ => operands(instr).all(|register| invariant[usize::from(register)]),
            };
        }
        let passes = Passes::new(program, &invariant);
        for end in 0..count {
            for register in passes.of(end).flat_map(|index| operands(&program.instrs[index])) {
                last_read[usize::from(register)] = end;
            }
        }
        for &register in &program.outputs {
            last_read[usize::from(register)] = usize::MAX;
        }
        let places = Vec::with_capacity(count);
        let mut plan = Plan { places, fallback: vec![0; count], invariant, passes, slots: 0, live: 0, steps: 0 };
        let mut free = Vec::new();
        for (index, instr) in program.instrs.iter().enumerate() {
            // A freed slot is written again by every tile, an invariant only once before all of them: it gets a slot of its own.
            let reuse = !plan.invariant[index];
            let mut take = || {
                free.pop_if(|_| reuse).unwrap_or_else(|| {
                    plan.slots += 1;
                    plan.slots - 1
                })
            };
            let is_output = last_read[index] == usize::MAX;
            let place = match *instr {
                _ if plan.passes.joined[index] => Place::Joined,
                Instr::Load { input } if program.inputs[usize::from(input)] == Broadcast::Full && !is_output => {
                    plan.fallback[index] = take();
                    Place::Input
                }
                _ if index + 1 == count && is_output && !plan.invariant[index] => {
                    let output = program.outputs.iter().position(|&register| usize::from(register) == index);
                    Place::Output(output.expect("the register is an output"))
                }
                _ => Place::Slot(take()),
            };
            plan.places.push(place);
            // Slots of invariants are computed before all tiles and stay taken.
            let read = plan.passes.of(index).flat_map(|index| operands(&program.instrs[index])).map(usize::from);
            for register in read.chain([index]) {
                if last_read[register] == index && !plan.invariant[register] {
                    match plan.places[register] {
                        Place::Slot(slot) => free.push(slot),
                        Place::Input => free.push(plan.fallback[register]),
                        Place::Joined | Place::Output(_) => {}
                    }
                    // Freed once.
                    last_read[register] = usize::MAX;
                }
            }
        }
        plan.steps = (0..count).filter(|&index| !plan.invariant[index] && plan.computes(index)).count();
        let full = program.inputs.iter().filter(|&&input| input == Broadcast::Full).count();
        let slots = plan.places.iter().zip(&plan.invariant).filter_map(|(place, invariant)| match place {
            Place::Slot(slot) if !invariant => Some(*slot),
            _ => None,
        });
        plan.live = slots.collect::<HashSet<_>>().len() + full + program.outputs.len();
        plan
    }

    /// Whether the only pass streams from memory to memory: the processor sees for itself what comes next.
    pub(super) fn streams(&self) -> bool {
        self.steps == 1
    }

    /// Whether instruction `index` ends a pass that is more than a look at an input's memory.
    pub(super) fn computes(&self, index: usize) -> bool {
        !matches!(self.places[index], Place::Input | Place::Joined)
    }
}

/// Most instructions of a pass.
pub(super) const PASS: usize = 16;

/// Simple instructions that pass their results on in vector registers.
pub(super) struct Passes {
    /// For each instruction the one before it in its pass, or itself.
    before: Vec<usize>,
    /// Its number in the pass.
    number: Vec<usize>,
    /// Instructions that another of the pass follows.
    pub(super) joined: Vec<bool>,
}

impl Passes {
    /// An instruction joins the next one that computes, if only that reads its result and both are simple.
    fn new(program: &Program, invariant: &[bool]) -> Passes {
        let instrs = &program.instrs;
        let mut reads = vec![0usize; instrs.len()];
        let read = instrs.iter().flat_map(operands).chain(program.outputs.iter().copied());
        read.for_each(|register| reads[usize::from(register)] += 1);
        let count = instrs.len();
        let mut passes = Passes { before: (0..count).collect(), number: vec![0; count], joined: vec![false; count] };
        let computing = (0..count).filter(|&index| !invariant[index] && !matches!(instrs[index], Instr::Load { .. }));
        let mut last: Option<usize> = None;
        for index in computing {
            if let Some(last) = last
                && reads[last] == 1
                && passes.number[last] + 1 < PASS
                && link(&instrs[last], None).is_some()
                && link(&instrs[index], Some(last)).is_some()
            {
                (passes.before[index], passes.number[index], passes.joined[last]) = (last, passes.number[last] + 1, true);
            }
            last = Some(index);
        }
        passes
    }

    /// Instructions of the pass that ends with `index`, last first; none if another follows.
    pub(super) fn of(&self, index: usize) -> impl Iterator<Item = usize> {
        std::iter::successors((!self.joined[index]).then_some(index), |&index| self.before(index))
    }

    /// The instruction before `index` in its pass.
    pub(super) fn before(&self, index: usize) -> Option<usize> {
        Some(self.before[index]).filter(|&before| before != index)
    }
}

/// A simple operation of a pass on what its registers hold.
#[derive(Clone, Copy, Debug)]
pub(super) enum Link {
    Unary(Unary),
    /// With an operand in memory.
    Binary(Binary, u16),
}

/// What `instr` does to the result of `last`, or, where that is none, to its first operand, and which that is; none if it cannot be
/// part of a pass.
pub(super) fn link(instr: &Instr, last: Option<usize>) -> Option<(Link, u16)> {
    let begins = |x: u16| last.is_none_or(|last| usize::from(x) == last);
    match *instr {
        Instr::Unary(op @ (Unary::Neg | Unary::Abs | Unary::Relu | Unary::Square), x) if begins(x) => Some((Link::Unary(op), x)),
        Instr::Binary(op, a, b) => match op {
            Binary::Add | Binary::Sub | Binary::Mul | Binary::Div | Binary::Min | Binary::Max if begins(a) => {
                Some((Link::Binary(op, b), a))
            }
            Binary::Add | Binary::Mul if begins(b) => Some((Link::Binary(op, a), b)),
            _ => None,
        },
        _ => None,
    }
}
