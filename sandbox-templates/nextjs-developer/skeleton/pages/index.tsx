export default function Home() {
  return <main className="p-8 text-xl">This page is pages/index.tsx.</main>;
}
