//! The users who can sign in, and what they sign in with. What others may read of them is in `sys_user`.

use std::collections::HashMap;

use crate::secrets;
use crate::settings::UserSettings;

#[derive(Debug, Default)]
pub(crate) struct Directory {
    users: HashMap<String, UserSettings>,
}

impl Directory {
    pub(crate) fn put(&mut self, user: UserSettings) {
        self.users.insert(user.user_name.clone(), user);
    }

    pub(crate) fn get(&self, user_name: &str) -> Option<&UserSettings> {
        self.users.get(user_name)
    }

    pub(crate) fn len(&self) -> usize {
        self.users.len()
    }

    /// Exists, is active and is not locked out.
    pub(crate) fn may_sign_in(&self, user_name: &str) -> bool {
        self.users.get(user_name).is_some_and(|user| user.active && !user.locked_out)
    }

    pub(crate) fn password_matches(&self, user_name: &str, password: &str) -> bool {
        let Some(user) = self.users.get(user_name) else { return false };
        self.may_sign_in(user_name)
            && user.password.as_deref().is_some_and(|own| secrets::same(own, password))
    }

    pub(crate) fn by_api_key(&self, api_key: &str) -> Option<&UserSettings> {
        let owner =
            |user: &&UserSettings| user.api_key.as_deref().is_some_and(|own| secrets::same(own, api_key));
        self.users.values().find(owner).filter(|user| self.may_sign_in(&user.user_name))
    }

    pub(crate) fn set_standing(&mut self, sys_id: &str, active: bool, locked_out: bool) {
        if let Some(user) = self.users.values_mut().find(|user| user.sys_id() == sys_id) {
            user.active = active;
            user.locked_out = locked_out;
        }
    }

    pub(crate) fn remove_by_sys_id(&mut self, sys_id: &str) {
        self.users.retain(|_, user| user.sys_id() != sys_id);
    }
}
