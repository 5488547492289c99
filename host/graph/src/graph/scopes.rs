//! Where in the model nodes were made, as a tree, and what was wished for the nodes in each part of it.

use std::collections::HashMap;

use super::{Graph, ScopeId};
use crate::Result;

#[derive(Clone, Debug)]
pub(super) struct Scope {
    parent: ScopeId,
    name: String,
    depth: u64,
    /// What was wished for the nodes in it.
    recompute: Option<bool>,
    /// Made for a wish, not by [`Graph::push_scope`]: the rest of the scope around it.
    rest: bool,
}

impl Scope {
    /// Its own parent.
    pub(super) fn root() -> Scope {
        Scope { parent: ScopeId(0), name: String::new(), depth: 0, recompute: None, rest: false }
    }
}

impl Graph {
    /// Opens a scope inside the current one.
    ///
    /// # Errors
    /// When scopes nest too deep.
    pub fn push_scope(&mut self, name: &str) -> Result<()> {
        let depth = self.scopes[self.scope.index()].depth + 1;
        self.limit("scope-depth", self.limits.scope_depth, depth, || format!("scope `{name}`"))?;
        self.limit("nodes", self.limits.nodes, self.scopes.len() as u64 + 1, || format!("scope `{name}`"))?;
        // Names go into messages; control characters must not reach a terminal.
        let name = name.chars().filter(|c| !c.is_control()).take(80).collect();
        let recompute = self.scopes[self.scope.index()].recompute;
        self.enter(Scope { parent: self.scope, name, depth, recompute, rest: false });
        Ok(())
    }

    fn enter(&mut self, scope: Scope) {
        self.scopes.push(scope);
        self.scope = ScopeId(self.scopes.len() as u32 - 1);
    }

    /// Closes the current scope; closing the root does nothing.
    pub fn pop_scope(&mut self) {
        while self.scopes[self.scope.index()].rest {
            self.scope = self.scopes[self.scope.index()].parent;
        }
        self.scope = self.scopes[self.scope.index()].parent;
    }

    /// Wishes that what follows in the current scope is computed again by the backward pass (`Some(true)`), kept for it
    /// (`Some(false)`), or left to [`crate::passes::recompute`] as before. The wish ends with the scope.
    ///
    /// # Errors
    /// When a limit is reached.
    pub fn wish_recompute(&mut self, recompute: Option<bool>) -> Result<()> {
        let current = &self.scopes[self.scope.index()];
        if current.recompute == recompute {
            return Ok(());
        }
        // Nodes know their scope alone, so a wish is a scope, too.
        let (parent, depth) = (if current.rest { current.parent } else { self.scope }, current.depth);
        self.limit("nodes", self.limits.nodes, self.scopes.len() as u64 + 1, || "remat".into())?;
        self.enter(Scope { parent, name: String::new(), depth, recompute, rest: true });
        Ok(())
    }

    /// What was wished for nodes of a scope.
    pub fn recompute_wish(&self, scope: ScopeId) -> Option<bool> {
        self.scopes[scope.index()].recompute
    }

    /// The current scope.
    pub fn scope(&self) -> ScopeId {
        self.scope
    }

    /// Makes an existing scope current; passes use it so that copies keep their origin.
    pub fn set_scope(&mut self, scope: ScopeId) {
        self.scope = ScopeId(scope.0.min(self.scopes.len() as u32 - 1));
    }

    /// `model/layers.3/attention`.
    pub fn scope_path(&self, mut scope: ScopeId) -> String {
        let mut names = Vec::new();
        while scope.index() != 0 {
            let s = &self.scopes[scope.index()];
            if !s.rest {
                names.push(s.name.as_str());
            }
            scope = s.parent;
        }
        names.reverse();
        names.join("/")
    }

    /// The scope of this graph for one of another graph, made unless `seen` has it.
    pub(super) fn import_scope(
        &mut self,
        other: &Graph,
        scope: ScopeId,
        seen: &mut HashMap<ScopeId, ScopeId>,
    ) -> Result<ScopeId> {
        if let Some(&id) = seen.get(&scope) {
            return Ok(id);
        }
        let s = &other.scopes[scope.index()];
        let parent = self.import_scope(other, s.parent, seen)?;
        self.scope = parent;
        match s.rest {
            true => self.wish_recompute(s.recompute)?,
            false => self.push_scope(&s.name)?,
        }
        seen.insert(scope, self.scope);
        Ok(self.scope)
    }
}
