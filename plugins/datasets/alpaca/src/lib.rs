//! Alpaca rows (Taori et al. 2023): `instruction`, optional `input` and `output`. As in ms-swift, instruction and
//! input are joined by a line break, without the original's preamble, which is the chat template's business.

use swift_sdk::prelude::*;
use swift_sdk::rows::Row;

config! {
    /// Instruction data: instruction, input, output.
    pub struct Alpaca {
        /// Set before rows that have no `system` column.
        system: Option<String> = None,
    }
}

impl Dataset for Alpaca {
    fn map_row(&self, row: &Json) -> Result<Vec<Sample>> {
        let mut row = Row::new(row)?;
        let names = row.names();
        let instruction = row.text(&["instruction"])?;
        let input = row.text(&["input"])?.filter(|input| !input.is_empty());
        let question = match (instruction, input) {
            (Some(instruction), Some(input)) => format!("{instruction}\n{input}"),
            (Some(text), None) | (None, Some(text)) => text,
            (None, None) => {
                return Err(Error::missing(format!("there is no `instruction`; the row has {names}")));
            }
        };
        let system = row.text(&["system"])?.or_else(|| self.system.clone());
        let mut turns: Vec<Turn> = system.map(|system| Turn::text("system", system)).into_iter().collect();
        turns.push(Turn::text("user", question));
        turns.extend(row.text(&["output"])?.map(|output| Turn::text("assistant", output)));
        Ok(vec![row.finish(turns)?])
    }
}

plugin! { dataset "alpaca": Alpaca }
