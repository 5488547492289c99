//! The skills: what can be asked, its exact answer, and how facts and questions are put into words. Words are few and
//! numbers small, so that a vocabulary of a few hundred tokens covers everything; days and months go by three letters.

use crate::random::Random;

const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const NAMES: [&str; 16] =
    ["Ann", "Ben", "Cal", "Dan", "Eva", "Fay", "Gus", "Hal", "Ida", "Joe", "Kim", "Leo", "Mia", "Ned", "Pam", "Roy"];

/// Largest number in sums, differences and tables: few enough facts that a model of a million parameters knows them after a few
/// million tokens.
const LARGEST: u64 = 30;

/// How the small unit's count follows from the large one's, and the largest count asked for.
const UNITS: [(&str, &str, u64, u64); 3] = [("m", "cm", 100, 20), ("kg", "g", 1000, 20), ("hours", "minutes", 60, 12)];

/// What an arithmetic question computes.
#[derive(Clone, Copy, PartialEq)]
pub enum Arithmetic {
    /// Sum.
    Add,
    /// Difference.
    Subtract,
    /// Product.
    Multiply,
}

/// Something to ask.
pub enum Question {
    /// `a op b`, never negative.
    Arithmetic(Arithmetic, u64, u64),
    /// The day or month so many steps after (or before) another.
    Calendar { cycle: &'static [&'static str], from: usize, steps: u64, back: bool },
    /// A count of one unit in the other of a pair.
    Unit { pair: usize, count: u64, to_small: bool },
    /// The sum or the difference of the numbers in a table of two rows.
    Table { rows: [(&'static str, u64); 2], total: bool },
}

use Question::{Calendar, Table, Unit};

/// How often each skill is drawn, in percent: sums, differences, products, calendars, units, and tables for the rest.
pub struct Shares([u64; 5]);

/// What is asked.
pub const QUESTIONS: Shares = Shares([27, 22, 13, 8, 16]);

/// What is told: more of what a small model learns last.
pub const FACTS: Shares = Shares([22, 18, 10, 18, 14]);

impl Question {
    /// Any question.
    pub fn draw(random: &mut Random, shares: &Shares) -> Question {
        let mut drawn = random.within(0, 99);
        let skill = shares.0.iter().position(|share| {
            let here = drawn < *share;
            drawn = drawn.wrapping_sub(if here { 0 } else { *share });
            here
        });
        match skill {
            Some(0) => Question::Arithmetic(Arithmetic::Add, random.within(0, LARGEST), random.within(0, LARGEST)),
            Some(1) => {
                let (a, b) = (random.within(0, LARGEST), random.within(0, LARGEST));
                Question::Arithmetic(Arithmetic::Subtract, a.max(b), a.min(b))
            }
            Some(2) => Question::Arithmetic(Arithmetic::Multiply, random.within(0, 9), random.within(0, 9)),
            Some(3) => {
                let cycle: &[&str] = if random.chance(50) { &DAYS } else { &MONTHS };
                let from = random.within(0, cycle.len() as u64 - 1) as usize;
                Calendar { cycle, from, steps: random.within(1, 3), back: random.chance(40) }
            }
            Some(_) => {
                let pair = random.within(0, UNITS.len() as u64 - 1) as usize;
                Unit { pair, count: random.within(1, UNITS[pair].3), to_small: random.chance(50) }
            }
            None => Question::draw_table(random),
        }
    }

    /// Different names; the larger number anywhere.
    fn draw_table(random: &mut Random) -> Question {
        let first = random.pick(&NAMES);
        let second = loop {
            let name = random.pick(&NAMES);
            if name != first {
                break name;
            }
        };
        let mut number = || random.within(0, LARGEST);
        let rows = [(first, number()), (second, number())];
        Table { rows, total: random.chance(50) }
    }

    /// What decides the split: the same for all wordings, for both orders of a sum or product, and for all names.
    pub fn content(&self) -> String {
        match self {
            Question::Arithmetic(op, a, b) => {
                let (a, b) = if *op == Arithmetic::Subtract { (a, b) } else { (a.min(b), a.max(b)) };
                format!("{} {a} {b}", op.sign())
            }
            Calendar { cycle, from, steps, back } => format!("{} {steps} {back}", cycle[*from]),
            Unit { pair, count, to_small } => format!("{} {count} {to_small}", UNITS[*pair].0),
            Table { rows: [(_, a), (_, b)], total } => format!("{total} {} {}", a.min(b), a.max(b)),
        }
    }

    /// The answer, at most six characters.
    pub fn answer(&self) -> String {
        match self {
            Question::Arithmetic(Arithmetic::Add, a, b) => (a + b).to_string(),
            Question::Arithmetic(Arithmetic::Subtract, a, b) => (a - b).to_string(),
            Question::Arithmetic(Arithmetic::Multiply, a, b) => (a * b).to_string(),
            Calendar { cycle, from, steps, back } => {
                let steps = *steps as usize;
                let to = if *back { from + cycle.len() - steps } else { from + steps };
                cycle[to % cycle.len()].to_string()
            }
            Unit { pair, count, to_small: true } => (count * UNITS[*pair].2).to_string(),
            Unit { count, to_small: false, .. } => count.to_string(),
            Table { rows: [(_, a), (_, b)], total: true } => (a + b).to_string(),
            Table { rows: [(_, a), (_, b)], total: false } => a.abs_diff(*b).to_string(),
        }
    }

    /// An answer of the right kind that is wrong.
    pub fn wrong_answer(&self, random: &mut Random) -> String {
        let right = self.answer();
        loop {
            let wrong = match self {
                Calendar { cycle, .. } => random.pick(cycle).to_string(),
                _ => random.within(0, 2 * LARGEST).to_string(),
            };
            if wrong != right {
                return wrong;
            }
        }
    }

    /// The question in words.
    pub fn prompt(&self, random: &mut Random) -> String {
        match self {
            Question::Arithmetic(op, a, b) => {
                let sign = op.sign();
                match random.within(0, 2) {
                    0 => format!("What is {a} {sign} {b}?"),
                    1 => format!("Compute {a} {sign} {b}."),
                    _ => format!("What is {a} {} {b}?", op.word()),
                }
            }
            Calendar { steps, back, cycle, from } => {
                let (unit, plural) = calendar_unit(cycle, *steps);
                let side = if *back { "before" } else { "after" };
                let asked = if random.chance(50) { "Which" } else { "What" };
                format!("{asked} {unit} is {steps} {unit}{plural} {side} {}?", cycle[*from])
            }
            Unit { pair, count, to_small } => {
                let (given, from, to) = unit_words(*pair, *count, *to_small);
                if random.chance(50) {
                    format!("How many {to} are {given} {from}?")
                } else {
                    format!("What is {given} {from} in {to}?")
                }
            }
            Table { rows, total } => format!("{}What is the {}?", table_lines(rows), table_word(*total)),
        }
    }

    /// The fact in words, as plain text that asks nothing. It uses the question's vocabulary in other sentences.
    pub fn statement(&self, random: &mut Random) -> String {
        let answer = self.answer();
        match self {
            Question::Arithmetic(op, a, b) => {
                let (sign, word) = (op.sign(), op.word());
                match random.within(0, 3) {
                    0 | 1 => format!("{a} {sign} {b} = {answer}."),
                    2 => format!("{a} {word} {b} is {answer}."),
                    _ => format!("Compute what {a} {sign} {b} is and you get {answer}."),
                }
            }
            Calendar { cycle, from, steps, back } => {
                let (unit, plural) = calendar_unit(cycle, *steps);
                let side = if *back { "before" } else { "after" };
                match random.within(0, 4) {
                    // The answer begins a line, as it will when it is asked for: without a space its tokens are others.
                    3 | 4 => format!("{steps} {unit}{plural} {side} {}:\n{answer}.", cycle[*from]),
                    0 => format!("{steps} {unit}{plural} {side} {} is {answer}.", cycle[*from]),
                    1 => format!("The {unit} which is {steps} {unit}{plural} {side} {} is {answer}.", cycle[*from]),
                    _ => format!("What comes {steps} {unit}{plural} {side} {}: {answer}.", cycle[*from]),
                }
            }
            Unit { pair, count, to_small } => {
                let (given, from, to) = unit_words(*pair, *count, *to_small);
                match random.within(0, 2) {
                    0 => format!("{given} {from} = {answer} {to}."),
                    1 => format!("{given} {from} are as many as {answer} {to}."),
                    _ => format!("{given} {from} in {to} is {answer}."),
                }
            }
            Table { rows, total } => format!("{}The {} is {answer}.", table_lines(rows), table_word(*total)),
        }
    }
}

impl Arithmetic {
    fn sign(self) -> &'static str {
        match self {
            Arithmetic::Add => "+",
            Arithmetic::Subtract => "-",
            Arithmetic::Multiply => "x",
        }
    }

    fn word(self) -> &'static str {
        match self {
            Arithmetic::Add => "plus",
            Arithmetic::Subtract => "minus",
            Arithmetic::Multiply => "times",
        }
    }
}

fn table_word(total: bool) -> &'static str {
    if total { "total" } else { "difference" }
}

/// A row a line.
fn table_lines(rows: &[(&str, u64)]) -> String {
    rows.iter().map(|(name, number)| format!("- {name}: {number}\n")).collect()
}

fn calendar_unit(cycle: &[&str], steps: u64) -> (&'static str, &'static str) {
    (if cycle.len() == DAYS.len() { "day" } else { "month" }, if steps == 1 { "" } else { "s" })
}

/// The given count, its unit and the wanted unit.
fn unit_words(pair: usize, count: u64, to_small: bool) -> (u64, &'static str, &'static str) {
    let (large, small, factor, _) = UNITS[pair];
    if to_small { (count, large, small) } else { (count * factor, small, large) }
}
