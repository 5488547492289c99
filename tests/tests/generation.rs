//! Generation: the engine's promises, and the commands that run a model without training it.

#[path = "generation/chat.rs"]
mod chat;
#[path = "generation/commands.rs"]
mod commands;
#[path = "generation/engine.rs"]
mod engine;
#[path = "generation/samplers.rs"]
mod samplers;
