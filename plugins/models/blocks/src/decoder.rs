//! What all decoders have around their blocks.

use swift_sdk::{Value, scope};

use crate::{Net, Norm};

/// Token table, numbered blocks, final norm and output projection.
#[derive(Clone, Copy, Debug)]
pub struct Stack<'a> {
    /// Tokens in the vocabulary.
    pub vocab: u64,
    /// Width of the residual stream.
    pub d: u64,
    /// Number of blocks.
    pub layers: u32,
    /// The token table: "model.embed_tokens".
    pub embedding: &'a str,
    /// Factor of the embeddings.
    pub embedding_scale: Option<f64>,
    /// The list of blocks: "model.layers".
    pub blocks: &'a str,
    /// Norm after the last block, and its name: "model.norm".
    pub norm: (&'a str, Norm),
    /// The output projection: "lm_head", or the token table where both are one.
    pub head: &'a str,
    /// Cap of the logits.
    pub softcap: Option<f64>,
}

impl<'a> Stack<'a> {
    /// The names that most Hugging Face models use.
    pub fn new(vocab: u64, d: u64, layers: u32, norm: Norm) -> Stack<'a> {
        Stack {
            vocab,
            d,
            layers,
            embedding: "model.embed_tokens",
            embedding_scale: None,
            blocks: "model.layers",
            norm: ("model.norm", norm),
            head: "lm_head",
            softcap: None,
        }
    }

    /// The output projection is the token table, if the configuration says so.
    #[must_use]
    pub fn tied(self, tied: bool) -> Stack<'a> {
        Stack { head: if tied { self.embedding } else { self.head }, ..self }
    }

    /// From "ids" to the head; `block` gets its module, its number and the residual stream, and returns the stream.
    pub fn run(&self, net: &Net, block: impl Fn(&Net, u32, &Value) -> Value) {
        let embedded = net.embed(self.embedding, &net.input("ids"), self.vocab, self.d);
        self.run_on(net, self.embedding_scale.map_or_else(|| embedded.clone(), |scale| &embedded * scale), block);
    }

    /// The same from embeddings.
    pub fn run_on(&self, net: &Net, embedded: Value, block: impl Fn(&Net, u32, &Value) -> Value) {
        let blocks = net.at(self.blocks);
        let stream = (0..self.layers)
            .fold(embedded, |x, layer| scope(format!("layers.{layer}"), || block(&blocks.at(&layer.to_string()), layer, &x)));
        let hidden = net.norm(self.norm.0, &stream, self.norm.1);
        net.head(self.head, &hidden, self.vocab, self.d, self.softcap);
    }
}
