//! Door 2, browsers: connect links, redirection endpoint, result pages
