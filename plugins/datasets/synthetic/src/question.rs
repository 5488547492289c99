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
    /// A number by name, or with none the name with the largest number.
    Table { rows: Vec<(&'static str, u64)>, ask: Option<usize> },
}

use Question::{Calendar, Table, Unit};

/// How often each skill is drawn, in percent: sums, differences, products, calendars, units, and tables for the rest.
pub struct Shares([u64; 5]);

/// What is asked.
pub const QUESTIONS: Shares = Shares([25, 20, 13, 16, 16]);

/// What is told: more of what takes a small model longest to learn, which is to look something up in a table.
pub const FACTS: Shares = Shares([20, 15, 9, 18, 11]);

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
                let (cycle, most): (&[&str], u64) = if random.chance(60) { (&DAYS, 6) } else { (&MONTHS, 3) };
                let from = random.within(0, cycle.len() as u64 - 1) as usize;
                Calendar { cycle, from, steps: random.within(1, most), back: random.chance(40) }
            }
            Some(_) => {
                let pair = random.within(0, UNITS.len() as u64 - 1) as usize;
                Unit { pair, count: random.within(1, UNITS[pair].3), to_small: random.chance(50) }
            }
            None => Question::draw_table(random),
        }
    }

    /// Three or four rows of different names and numbers.
    fn draw_table(random: &mut Random) -> Question {
        let mut rows: Vec<(&'static str, u64)> = Vec::new();
        let size = random.within(3, 4) as usize;
        while rows.len() < size {
            let row = (random.pick(&NAMES), random.within(1, LARGEST));
            if rows.iter().all(|(name, number)| *name != row.0 && *number != row.1) {
                rows.push(row);
            }
        }
        let ask = random.chance(80).then(|| random.within(0, size as u64 - 1) as usize);
        Table { rows, ask }
    }

    /// What decides the split: the same for all wordings, for both orders of a sum or product, and for all that a table can be asked.
    pub fn content(&self) -> String {
        match self {
            Question::Arithmetic(op, a, b) => {
                let (a, b) = if *op == Arithmetic::Subtract { (a, b) } else { (a.min(b), a.max(b)) };
                format!("{} {a} {b}", op.sign())
            }
            Calendar { cycle, from, steps, back } => format!("{} {steps} {back}", cycle[*from]),
            Unit { pair, count, to_small } => format!("{} {count} {to_small}", UNITS[*pair].0),
            Table { rows, .. } => format!("{rows:?}"),
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
            Table { rows, ask: Some(row) } => rows[*row].1.to_string(),
            Table { rows, ask: None } => {
                rows.iter().max_by_key(|(_, number)| number).map_or_else(String::new, |(name, _)| (*name).to_string())
            }
        }
    }

    /// An answer of the right kind that is wrong.
    pub fn wrong_answer(&self, random: &mut Random) -> String {
        let right = self.answer();
        loop {
            let wrong = match self {
                Calendar { cycle, .. } => random.pick(cycle).to_string(),
                Table { rows, ask: None } => random.pick(rows).0.to_string(),
                Table { rows, ask: Some(_) } => random.pick(rows).1.to_string(),
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
            Table { rows, ask } => {
                let ask = match ask {
                    Some(row) => format!("What is the number of {}?", rows[*row].0),
                    None => "Who has the largest number?".to_string(),
                };
                format!("{}{ask}", table_lines(rows))
            }
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
            Table { rows, ask: Some(_) } => {
                // Every row, in any order: each is one more look-up to learn from.
                let mut left = rows.clone();
                let mut text = table_lines(rows);
                while !left.is_empty() {
                    let (name, number) = left.swap_remove(random.within(0, left.len() as u64 - 1) as usize);
                    let space = if left.len() + 1 < rows.len() { " " } else { "" };
                    text += &format!("{space}The number of {name} is {number}.");
                }
                text
            }
            Table { rows, ask: None } => format!("{}The one who has the largest number is {answer}.", table_lines(rows)),
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

/// A row a line. A name follows a space wherever it stands, so that its tokens are the same in the table and in the question.
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
