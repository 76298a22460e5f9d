"""Who is asking, and Unity Catalog: its objects, grants and temporary credentials."""
