"""Goals reached by searching actions through a model: energies, searches, acting, and how well it goes."""
