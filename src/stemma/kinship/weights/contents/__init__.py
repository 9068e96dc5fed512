"""Are matched units nearer than any reordering can bring units of independent networks?"""
